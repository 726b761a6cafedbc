"""Under synchronous replication, a commit whose wait was cancelled succeeds: it is not taken for one."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from service.database import NotDurableError, durable_transaction
from worker.deps import Deps
from worker.tidy import trim_logs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable

SECONDS_MAX = 20
WAITING = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'"


@asynccontextmanager
async def standby_away(postgres_url: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    """A synchronous standby is configured, and there is none; gives a connection that waits for nobody."""
    connection = await asyncpg.connect(
        postgres_url, server_settings={"synchronous_commit": "local"}
    )
    try:
        await connection.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        await connection.execute("SELECT pg_reload_conf()")
        async with asyncio.timeout(SECONDS_MAX):
            while await connection.fetchval("SHOW synchronous_standby_names") != "nobody":
                pass
        yield connection
    finally:
        await connection.execute("ALTER SYSTEM RESET synchronous_standby_names")
        await connection.execute("SELECT pg_reload_conf()")
        await connection.close()


async def cancelled_commit(connection: asyncpg.Connection[Any], work: Awaitable[object]) -> object:
    """What *work* comes to when its COMMIT is cancelled while it waits for the standby."""
    task = asyncio.ensure_future(work)
    async with asyncio.timeout(SECONDS_MAX):
        while (pid := await connection.fetchval(WAITING)) is None:
            assert not task.done(), "nobody waited"
    assert await connection.fetchval("SELECT pg_cancel_backend($1)", pid)
    return await task


async def units(deps: Deps) -> int:
    async with deps.database.connection() as connection:
        query = "SELECT coalesce(sum(amount), 0)::bigint FROM usage_logs"
        return int(await connection.fetchval(query))


async def test_a_cancelled_commit_is_not_taken_for_applied_and_applied_once_all_the_same(
    deps: Deps, postgres_url: str
) -> None:
    await deps.quota.record("user-1", "tokens", 2)
    await deps.drain.run(seconds_max=5)
    await deps.quota.record("user-1", "tokens", 5)

    async with standby_away(postgres_url) as connection:
        with pytest.RaisesGroup(NotDurableError):
            await cancelled_commit(connection, deps.drain.run(seconds_max=5))
    counted = deps.registry.get_sample_value("allotment_records_applied_total")
    await deps.quota.record("user-1", "tokens", 1)
    await deps.drain.run(seconds_max=5)

    assert counted == 1
    assert await units(deps) == 8
    assert (await deps.quota.check("user-1", "tokens")).used == 8


async def test_a_log_is_not_cut_before_the_standby_has_what_was_applied(
    deps: Deps, postgres_url: str
) -> None:
    async with standby_away(postgres_url) as connection:
        with pytest.raises(NotDurableError):
            await cancelled_commit(connection, trim_logs(deps))
    await trim_logs(deps)


async def test_another_notice_does_not_make_a_commit_fail(deps: Deps) -> None:
    async with deps.database.connection() as connection:
        async with durable_transaction(connection):
            await connection.execute("DO $$ BEGIN RAISE WARNING 'before the commit'; END $$")
        with pytest.raises(asyncpg.DivisionByZeroError):
            await _failing(connection)
        assert await connection.fetchval("SELECT to_regclass('gone')") is None


async def _failing(connection: asyncpg.Connection[Any]) -> None:
    async with durable_transaction(connection):
        await connection.execute("CREATE TABLE gone (x int)")
        await connection.execute("SELECT 1 / 0")
