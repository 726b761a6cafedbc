"""PostgreSQL fails for a while, or makes others wait: no record is at fault, none is lost, none counts twice."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from quota import Quota
from worker.deps import Deps
from worker.load_server import LoadServer

if TYPE_CHECKING:
    from collections.abc import Iterable

SECONDS_MAX = 30
WAITING = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND wait_event_type = 'Lock'
"""


async def number(deps: Deps, query: str) -> int:
    async with deps.database.connection() as connection:
        return int(await connection.fetchval(query))


async def units(deps: Deps) -> int:
    return await number(deps, "SELECT coalesce(sum(usage_count), 0)::bigint FROM feature_usage")


async def until(connection: asyncpg.Connection[Any], query: str) -> None:
    async with asyncio.timeout(SECONDS_MAX):
        while not await connection.fetchval(query):
            pass


@pytest.mark.parametrize(
    "state",
    ["53100", "53200", "40P01", "40001", "55P03", "57014", "57P01", "58030"],
    ids=["disk full", "out of memory", "deadlock", "serialization", "lock not available",
         "cancelled", "shut down", "input or output"],
)  # fmt: skip
@pytest.mark.parametrize("table", ["usage_logs", "feature_usage"])
async def test_an_error_that_passes_sets_no_record_aside(deps: Deps, table: str, state: str):
    await deps.quota.record("user-1", "tokens", 5)
    async with deps.database.connection() as connection:
        await connection.execute(
            f"""
            CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN RAISE EXCEPTION 'for a while' USING ERRCODE = '{state}'; END $$;
            CREATE TRIGGER failing AFTER INSERT ON {table} EXECUTE FUNCTION fail()
            """
        )
    for _ in range(3):
        with pytest.RaisesGroup(asyncpg.PostgresError):
            await deps.drain.run(seconds_max=5)
    decision = await deps.quota.consume("user-1", "tokens", 2)

    async with deps.database.connection() as connection:
        await connection.execute(f"DROP TRIGGER failing ON {table}; DROP FUNCTION fail()")
    await deps.drain.run(seconds_max=5)

    assert decision.used == 7
    assert await units(deps) == 7
    assert await number(deps, "SELECT count(*) FROM usage_logs") == 2
    assert await number(deps, "SELECT count(*) FROM quarantined_records") == 0


async def increment(connection: asyncpg.Connection[Any], users: Iterable[Any]) -> None:
    for user in users:
        await connection.execute("SELECT increment_feature_usage($1, 'tokens', 1)", user)


async def test_a_deadlock_with_somebody_elses_transaction_costs_nobody_a_unit(
    deps: Deps, database_url: str
):
    """A run takes rows in the order of their keys; a transaction of two increments in the other."""
    shard = deps.keys.shards[0]
    names = [f"user-{number}" for number in range(40)]
    for name in names:
        await deps.quota.record(name, "tokens", 1)
    await deps.drain.run(seconds_max=5)
    async with deps.database.connection() as connection:
        rows = await connection.fetch("SELECT id, external_id FROM users ORDER BY id")
    ours = [row for row in rows if deps.keys.shard_of(row["id"]) is shard]
    first, last = ours[0], ours[-1]
    for row in (first, last):
        await deps.quota.record(row["external_id"], "tokens", 1)
    other = await asyncpg.connect(database_url)
    counted_by_other = 2

    try:
        async with other.transaction():
            await increment(other, [last["id"]])
            drain = asyncio.create_task(deps.drain.run(seconds_max=20))
            await until(other, WAITING)
            await increment(other, [first["id"]])  # one of the two is told after a second
    except asyncpg.DeadlockDetectedError:
        counted_by_other = 0
    finally:
        await other.close()
        outcome = (await asyncio.gather(drain, return_exceptions=True))[0]
    await deps.drain.run(seconds_max=5)

    assert counted_by_other == 0 or isinstance(outcome, ExceptionGroup), "nobody was told"
    assert await units(deps) == len(names) + 2 + counted_by_other
    assert await number(deps, "SELECT count(*) FROM quarantined_records") == 0


async def test_while_every_table_is_locked_known_users_are_decided_and_all_is_applied_then(
    deps: Deps, database_url: str
):
    await deps.quota.consume("known", "tokens", 1)
    await deps.drain.run(seconds_max=5)
    other = await asyncpg.connect(database_url)
    serving = asyncio.create_task(
        LoadServer(deps.redis, deps.keys, deps.loader, deps.metrics).serve()
    )
    application = Quota(deps.redis, prefix=deps.keys.prefix, load_timeout_s=0.5)
    try:
        async with application, other.transaction():
            tables = await other.fetch(
                "SELECT format('%I', tablename) AS name FROM pg_tables WHERE schemaname = 'public'"
            )
            names = ", ".join(row["name"] for row in tables)
            await other.execute(f"LOCK TABLE {names} IN ACCESS EXCLUSIVE MODE")
            drain = asyncio.create_task(deps.drain.run(seconds_max=20))
            await until(other, WAITING)

            decisions = [await application.consume("known", "tokens", 1) for _ in range(200)]
            stranger = await application.consume("stranger", "tokens", 1)
    finally:
        await other.close()
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
    await drain
    await deps.drain.run(seconds_max=20)

    assert all(decisions)
    assert stranger.code == "unavailable"
    assert await units(deps) == 201
    assert (await deps.quota.check("known", "tokens")).used == 201
