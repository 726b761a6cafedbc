"""Whoever has a shard and stands still loses it; whoever works, however slowly, does not."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from service.database import statement
from worker import standstill
from worker.standstill import Standstill

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from worker.deps import Deps

SHARD = 1
SECONDS_MAX = 30
CHUNK = b"x" * 100_000 + b"\n"


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two looks are long enough for this test."""
    monkeypatch.setattr(standstill, "_PATIENCE_S", 0)
    monkeypatch.setattr(standstill, "_STILL_S", 0)


@pytest.fixture
async def holder(database_url: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    """A session whose transaction has the shard; its table takes what it sends."""
    connection = await asyncpg.connect(database_url)
    await connection.execute("CREATE TABLE sent (line text)")
    await connection.execute("BEGIN")
    await connection.fetchrow(statement("worker", "lock_shard"), SHARD)
    yield connection
    connection.terminate()


async def looked(deps: Deps, one: Standstill, times: int = 4) -> None:
    for _ in range(times):
        async with deps.database.connection() as connection:
            row = await connection.fetchrow(statement("service", "shard_position"), SHARD)
        assert row is not None
        await one.look(SHARD, locked_by=row["locked_by"])


def freed(deps: Deps) -> float | None:
    return deps.registry.get_sample_value("allotment_shards_freed_total")


async def waits(deps: Deps, pid: int, kind: str) -> None:
    """Until the server process of that session waits for something of this kind."""
    query = "SELECT wait_event_type FROM pg_stat_activity WHERE pid = $1"
    async with deps.database.connection() as connection, asyncio.timeout(SECONDS_MAX):
        while await connection.fetchval(query, pid) != kind:
            pass


async def test_a_session_that_does_nothing_in_its_transaction_is_ended(
    deps: Deps, holder: asyncpg.Connection[Any]
):
    await looked(deps, Standstill(deps.database, deps.metrics))

    assert freed(deps) == 1
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
        await holder.execute("COMMIT")
    async with deps.database.connection() as connection:
        assert await connection.fetchrow(statement("service", "hold_shard"), SHARD)


async def test_a_session_whose_statement_takes_long_is_let_be(
    deps: Deps, holder: asyncpg.Connection[Any]
):
    pid = holder.get_server_pid()
    sleep = asyncio.create_task(holder.execute("SELECT pg_sleep(1000)"))
    await waits(deps, pid, "Timeout")

    await looked(deps, Standstill(deps.database, deps.metrics), times=20)

    assert freed(deps) == 0
    sleep.cancel()


async def test_a_copy_is_let_be_while_something_comes_and_ended_when_nothing_does(
    deps: Deps, holder: asyncpg.Connection[Any]
):
    more = asyncio.Queue[bytes]()

    async def source() -> AsyncIterator[bytes]:
        while True:
            yield await more.get()

    copy = asyncio.create_task(holder.copy_to_table("sent", source=source()))
    one = Standstill(deps.database, deps.metrics)
    for chunks in range(1, 10):
        more.put_nowait(CHUNK)
        await taken(deps, holder.get_server_pid(), chunks * len(CHUNK))
        await looked(deps, one, times=1)
    assert freed(deps) == 0

    await looked(deps, one)
    assert freed(deps) == 1
    copy.cancel()


async def taken(deps: Deps, pid: int, size: int) -> None:
    """Until PostgreSQL has had so many bytes of that session's COPY, and waits for more."""
    query = "SELECT bytes_processed FROM pg_stat_progress_copy WHERE pid = $1"
    async with deps.database.connection() as connection, asyncio.timeout(SECONDS_MAX):
        while (await connection.fetchval(query, pid) or 0) < size:
            pass
    await waits(deps, pid, "Client")


async def test_a_lock_that_is_over_is_nobodys(deps: Deps, holder: asyncpg.Connection[Any]):
    one = Standstill(deps.database, deps.metrics)
    await looked(deps, one, times=1)
    await holder.execute("ROLLBACK")

    await looked(deps, one, times=20)

    assert freed(deps) == 0
    assert await holder.fetchval("SELECT 1") == 1
