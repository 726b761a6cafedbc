"""What was admitted is applied once: whatever is repeated, interrupted, or done twice at a time."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pytest

from quota.values import AMOUNT_MAX, parse_user_id
from service.database import statement
from service.usage_log import read_entries
from worker.apply import apply_run
from worker.deps import Deps

USER = parse_user_id("user-1")


async def run_of(deps: Deps) -> tuple[int, Any]:
    shard = deps.keys.shard_of(USER.id)
    async with deps.database.connection() as connection:
        row = await connection.fetchrow(statement("service", "shard_position"), shard.index)
    assert row is not None
    run = await read_entries(deps.redis, shard, after=row["last_entry_id"], lines_max=10_000)
    return shard.index, run


async def totals(deps: Deps) -> dict[str, Any]:
    """Everything that is counted from the log, as sums."""
    queries = {
        "rows": "SELECT count(*) FROM usage_logs",
        "units": "SELECT coalesce(sum(amount), 0)::bigint FROM usage_logs",
        "usage_count": "SELECT coalesce(sum(usage_count), 0)::bigint FROM feature_usage",
        "lifetime": "SELECT coalesce(sum(lifetime_used), 0)::bigint FROM usage_counters",
        "day": "SELECT coalesce(sum(day_used), 0)::bigint FROM usage_counters",
        "burnt": "SELECT coalesce(sum(amount_micro), 0)::bigint FROM credit_entries WHERE kind = 'burn'",
        "overage": "SELECT coalesce(sum(overage_micro), 0)::bigint FROM users",
    }
    async with deps.database.connection() as connection:
        return {name: await connection.fetchval(query) for name, query in queries.items()}


async def test_a_run_applied_twice_counts_once(deps: Deps) -> None:
    for amount in (1, 2, 3):
        await deps.quota.record("user-1", "tokens", amount)
    shard, run = await run_of(deps)

    first = await apply_run(deps.database, shard, run)
    second = await apply_run(deps.database, shard, run)

    assert first is not None
    assert first.applied == 3
    assert second is None
    assert (await totals(deps))["units"] == 6


async def test_two_workers_at_once_apply_each_record_once(deps: Deps) -> None:
    await asyncio.gather(*(deps.quota.record("user-1", "tokens", 1) for _ in range(50)))
    shard, run = await run_of(deps)

    outcomes = await asyncio.gather(*(apply_run(deps.database, shard, run) for _ in range(4)))

    assert [outcome.applied for outcome in outcomes if outcome is not None] == [50]
    assert await totals(deps) | {
        "units": 50,
        "usage_count": 50,
        "lifetime": 50,
        "day": 50,
    } == await totals(deps)


async def test_a_transaction_that_dies_before_its_commit_leaves_nothing(deps: Deps) -> None:
    await deps.quota.record("user-1", "tokens", 5)
    shard, run = await run_of(deps)
    async with deps.database.connection() as other:
        await other.execute(
            """CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS
               $$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END $$;
               CREATE TRIGGER die AFTER UPDATE ON usage_shards FOR EACH STATEMENT EXECUTE FUNCTION die()"""
        )

    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
        await apply_run(deps.database, shard, run)

    assert (await totals(deps))["rows"] == 0
    async with deps.database.connection() as other:
        await other.execute("DROP FUNCTION die() CASCADE")
    assert await deps.drain.run(seconds_max=5) == 1
    assert (await totals(deps))["units"] == 5


async def test_a_repeat_that_redis_forgot_is_refused_and_the_drift_healed(deps: Deps) -> None:
    generated = (await deps.quota.consume("user-1", "tokens", 3)).key
    await deps.quota.consume("user-1", "tokens", 4, key="own")
    await deps.drain.run(seconds_max=5)
    shard = deps.keys.shard_of(USER.id)

    await deps.redis.delete(*shard.marks)
    await deps.quota.consume("user-1", "tokens", 3, key=generated)
    await deps.quota.consume("user-1", "tokens", 4, key="own")
    drifted = await deps.quota.check("user-1", "tokens")
    await deps.drain.run(seconds_max=5)
    healed = await deps.quota.check("user-1", "tokens")

    assert (await totals(deps))["units"] == 7
    assert drifted.used == 14
    assert healed.used == 7


async def test_a_poison_line_is_set_aside_and_its_neighbours_are_applied(deps: Deps) -> None:
    shard = deps.keys.shard_of(USER.id)
    await deps.quota.record("user-1", "tokens", 1)
    lines = [
        '["user-1","tokens",2,"good-1",0]',
        '["user-1","tokens",-5,"negative",0]',
        '["user-1","tokens",2,"nul-\\u0000",0]',
        '["user-1","tokens",2,"meta",0,null,null,{"a":"\\u0000"}]',
        '["user-1","Bad Name",2,"name",0]',
        '["user-1","tokens",2,"short"]',
        '{"not": "a line"}',
        f'["user-1","tokens",{AMOUNT_MAX},"good-2",0]',
    ]
    await deps.redis.xadd(
        shard.log,
        {
            "v": "1",
            "e": "1",
            "t": "1763712000000",
            "c": "0," * len(lines),
            "r": f"[{','.join(lines)}]",
        },
    )
    await deps.redis.xadd(shard.log, {"v": "1", "garbage": b"\xff\xfe"})
    await deps.quota.record("user-1", "tokens", 4)

    await deps.drain.run(seconds_max=10)

    assert (await totals(deps))["units"] == 1 + 2 + AMOUNT_MAX + 4
    async with deps.database.connection() as connection:
        reasons = [
            row["reason"]
            for row in await connection.fetch("SELECT reason FROM quarantined_records ORDER BY id")
        ]
    assert len(reasons) == 7
    assert any("amount" in reason for reason in reasons)
    assert any("feature" in reason for reason in reasons)


async def test_a_count_that_postgresql_cannot_hold_is_set_aside(deps: Deps) -> None:
    async with deps.database.connection() as connection:
        await deps.quota.record("user-1", "tokens", 1)
        await deps.drain.run(seconds_max=5)
        await connection.execute("UPDATE feature_usage SET usage_count = 9223372036854775807 - 2")
    await deps.quota.record("user-1", "tokens", 2)
    await deps.quota.record("user-1", "tokens", 2, key="one too many")
    await deps.quota.record("user-1", "other", 7)

    await deps.drain.run(seconds_max=10)

    async with deps.database.connection() as connection:
        assert (
            await connection.fetchval(
                "SELECT usage_count FROM feature_usage WHERE feature_name = 'other'"
            )
            == 7
        )
        assert await connection.fetchval("SELECT count(*) FROM quarantined_records") >= 1


async def test_what_is_set_aside_does_not_stay_counted_in_redis(deps: Deps) -> None:
    await deps.quota.record("user-1", "tokens", 1)
    await deps.drain.run(seconds_max=5)
    async with deps.database.connection() as connection:
        await connection.execute("UPDATE feature_usage SET usage_count = 9223372036854775807 - 2")
    await deps.quota.record("user-1", "tokens", 2)
    await deps.quota.record("user-1", "tokens", 3)  # more than PostgreSQL can count
    assert (await deps.quota.check("user-1", "tokens")).used == 6

    await deps.drain.run(seconds_max=10)

    assert (await deps.quota.check("user-1", "tokens")).used == 3


async def test_an_entry_of_a_newer_version_is_left_for_a_newer_worker(deps: Deps) -> None:
    shard = deps.keys.shard_of(USER.id)
    await deps.quota.record("user-1", "tokens", 1)
    newer = await deps.redis.xadd(shard.log, {"v": "3", "what": "ever"})
    await deps.quota.record("user-1", "tokens", 1)

    await deps.drain.run(seconds_max=5)
    assert (await totals(deps))["units"] == 1

    await deps.redis.xdel(shard.log, newer)
    await deps.drain.run(seconds_max=5)
    assert (await totals(deps))["units"] == 2


async def test_a_user_that_postgresql_lost_is_made_again_by_what_was_admitted(deps: Deps) -> None:
    await deps.quota.record("user-1", "tokens", 2)
    async with deps.database.connection() as connection:
        await connection.execute("DELETE FROM users")

    await deps.drain.run(seconds_max=5)

    async with deps.database.connection() as connection:
        assert (
            await connection.fetchval("SELECT external_id FROM users WHERE id = $1", USER.id)
            == "user-1"
        )
    assert (await totals(deps))["units"] == 2


DEFAULT = "usage_logs_default"


async def explain(connection: Any, name: str, *arguments: str, partition: str = "") -> str:
    query = statement("worker", name).replace("{partition}", partition)
    for number, argument in enumerate(arguments, 1):
        query = query.replace(f"${number}", argument)
    return str(await connection.fetch(f"EXPLAIN {query}"))


async def test_the_hot_statements_use_their_indexes(deps: Deps) -> None:
    uuids = "ARRAY[gen_random_uuid()]"
    await asyncio.gather(*(deps.quota.record("user-1", "tokens", 1) for _ in range(2000)))
    await deps.drain.run(seconds_max=10)
    async with deps.database.connection() as connection, connection.transaction():
        await connection.execute("ANALYZE usage_logs")
        await connection.execute("SET LOCAL enable_seqscan = off")  # as on tables of millions

        ids = await explain(connection, "repeated_ids", uuids, uuids, partition=DEFAULT)
        marks = await explain(connection, "repeated_marks", uuids, uuids)

    assert "_pkey" in ids
    assert "usage_keys_pkey" in marks


async def test_ids_are_looked_up_by_key_though_the_statistics_say_that_there_are_none(deps: Deps):
    """As after an ANALYZE of a new partition of which no row was committed yet."""
    for _ in range(3):
        await deps.quota.record("user-1", "tokens", 1)
    await deps.drain.run(seconds_max=10)
    async with deps.database.connection() as connection, connection.transaction():
        rows = (
            "SELECT gen_random_uuid(), gen_random_uuid(), 'a', now() FROM generate_series(1, 2000)"
        )
        await connection.execute(f"INSERT INTO {DEFAULT} (id, user_id, action, created_at) {rows}")
        await connection.execute(f"DELETE FROM {DEFAULT}")
        await connection.execute(f"ANALYZE {DEFAULT}")
        await connection.execute("SET LOCAL enable_seqscan = off")

        uuids = "ARRAY[gen_random_uuid()]"
        plan = await explain(connection, "repeated_ids", uuids, uuids, partition=DEFAULT)
        pages = await connection.fetchrow(
            "SELECT relpages, reltuples FROM pg_class WHERE relname = $1", DEFAULT
        )

    assert pages is not None
    assert (pages["relpages"] > 0, pages["reltuples"]) == (True, 0)
    assert "using usage_logs_default_pkey" in plan
    assert "Index Cond: ((ROW(id, user_id) >=" in plan


async def test_a_count_that_somebody_has_left_empty_counts_on(deps: Deps) -> None:
    async with deps.database.connection() as connection:
        await deps.quota.record("user-1", "tokens", 1)
        await deps.drain.run(seconds_max=60)
        await connection.execute("UPDATE feature_usage SET usage_count = NULL")

        await deps.quota.record("user-1", "tokens", 2)
        await deps.drain.run(seconds_max=60)

        assert await connection.fetchval("SELECT usage_count FROM feature_usage") == 2
