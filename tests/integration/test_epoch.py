"""Redis that lost something is noticed, and nothing is skipped or applied twice because of it."""

from __future__ import annotations

from typing import Any

from quota.rules import Rules
from quota.values import parse_user_id
from service.tiers import apply_rules, publish
from worker.deps import Deps

USER = parse_user_id("user-1")


async def lose_redis(deps: Deps) -> None:
    keys = [key async for key in deps.redis.scan_iter(f"{deps.keys.prefix}:*", count=1000)]
    await deps.redis.delete(*keys)


async def units(deps: Deps) -> int:
    async with deps.database.connection() as connection:
        return int(
            await connection.fetchval(
                "SELECT coalesce(sum(usage_count), 0)::bigint FROM feature_usage"
            )
        )


async def shard_row(deps: Deps) -> Any:
    async with deps.database.connection() as connection:
        query = "SELECT epoch, last_entry_id FROM usage_shards WHERE shard = $1"
        return await connection.fetchrow(query, deps.keys.shard_of(USER.id).index)


async def test_usage_comes_back_when_all_of_redis_is_lost(deps: Deps) -> None:
    await deps.quota.record("user-1", "tokens", 5)
    await deps.drain.run(seconds_max=5)
    before = await shard_row(deps)

    await lose_redis(deps)
    decision = await deps.quota.consume("user-1", "tokens", 2)
    await deps.drain.run(seconds_max=5)
    after = await shard_row(deps)

    assert decision.used == 7
    assert await units(deps) == 7
    assert after["epoch"] > before["epoch"]


async def test_what_is_admitted_too_much_after_a_loss_is_what_had_not_been_applied(
    deps: Deps,
) -> None:
    """`event` has 100 a day: 60 of them are in PostgreSQL, 25 are lost with the log."""
    await deps.quota.consume("user-1", "event", 60)
    await deps.drain.run(seconds_max=5)
    await deps.quota.consume("user-1", "event", 25)

    await lose_redis(deps)
    again = [bool(await deps.quota.consume("user-1", "event", 1)) for _ in range(110)]
    await deps.drain.run(seconds_max=5)

    assert sum(again) == 40
    assert (
        await units(deps) == 100
    )  # so 125 were admitted in all: 25 too many, and no limit is passed here


async def test_a_log_that_starts_anew_below_the_position_is_neither_skipped_nor_repeated(
    deps: Deps,
) -> None:
    await deps.quota.record("user-1", "tokens", 5)
    await deps.drain.run(seconds_max=5)
    shard = deps.keys.shard_of(USER.id)
    far_ahead = "99999999999999-7"  # as if the clock of the lost Redis had run ahead
    async with deps.database.connection() as connection:
        await connection.execute(
            "UPDATE usage_shards SET last_entry_id = $2 WHERE shard = $1", shard.index, far_ahead
        )

    await lose_redis(deps)
    await deps.quota.record("user-1", "tokens", 2)
    await deps.drain.run(seconds_max=5)
    await deps.drain.run(seconds_max=5)

    assert await units(deps) == 7


async def test_a_log_whose_tail_is_lost_begins_a_new_epoch(deps: Deps) -> None:
    await deps.quota.record("user-1", "tokens", 5)
    await deps.drain.run(seconds_max=5)
    shard = deps.keys.shard_of(USER.id)
    before = await shard_row(deps)
    # As after a restart from an append-only file that was cut: state and log of an earlier instant.
    await deps.redis.delete(shard.log, shard.user_of(USER.id.hex), *shard.marks)

    await deps.drain.run(seconds_max=5)

    assert (await shard_row(deps))["epoch"] == before["epoch"] + 1
    assert (await deps.quota.check("user-1", "tokens")).used == 5


async def test_a_postgresql_that_was_set_back_is_replayed_from_the_log(deps: Deps) -> None:
    await deps.quota.record("user-1", "tokens", 5)
    await deps.drain.run(seconds_max=5)
    before = await shard_row(deps)
    await deps.quota.consume("user-1", "tokens", 3)
    await deps.drain.run(seconds_max=5)

    async with deps.database.connection() as connection:
        await connection.execute(
            "UPDATE usage_shards SET last_entry_id = $1 WHERE last_entry_id <> '0-0'",
            before["last_entry_id"],
        )
        await connection.execute("DELETE FROM usage_logs WHERE amount = 3")
        await connection.execute("UPDATE feature_usage SET usage_count = 5")
        await connection.execute("UPDATE usage_counters SET lifetime_used = 5, day_used = 5")
    await deps.drain.run(seconds_max=5)

    assert await units(deps) == 8


async def test_new_rules_are_in_force_for_the_next_decision(deps: Deps) -> None:
    async def put(most: int, price: str) -> None:
        document = {
            "default_tier": "t",
            "features": {"tokens": {"price": price}},
            "tiers": {"t": {"overdraft": True, "limits": {"tokens": {"max": most, "per": "day"}}}},
        }
        async with deps.database.connection() as connection:
            await connection.execute("UPDATE users SET tier = 't'")
        await publish(
            deps.redis, deps.keys, await apply_rules(deps.database, Rules.from_document(document))
        )

    await deps.quota.check("user-1", "tokens")
    await put(10, "1")
    await lose_redis(deps)
    first = await deps.quota.consume("user-1", "tokens", 2)
    await put(20, "3")
    second = await deps.quota.consume("user-1", "tokens", 2)

    assert (first.limit, str(first.cost)) == (10, "2")
    assert (second.limit, str(second.cost)) == (20, "6")


async def test_a_redis_that_was_set_back_is_noticed_though_records_came_since(deps: Deps) -> None:
    shard = deps.keys.shard_of(USER.id)
    await deps.quota.record("user-1", "tokens", 40)
    await deps.drain.run(seconds_max=5)
    kept = {key: await deps.redis.dump(key) for key in (shard.user_of(USER.id.hex), shard.log)}
    await deps.quota.record("user-1", "tokens", 60)
    await deps.drain.run(seconds_max=5)
    before = await shard_row(deps)

    for key, dump in kept.items():  # a snapshot from before the second record
        await deps.redis.restore(key, 0, dump, replace=True)
    await deps.quota.record("user-1", "tokens", 1)
    await deps.drain.run(seconds_max=5)

    assert (await shard_row(deps))["epoch"] == before["epoch"] + 1
    assert (await deps.quota.check("user-1", "tokens")).used == 101
    assert await units(deps) == 101


async def test_a_new_epoch_is_begun_once(deps: Deps) -> None:
    await deps.quota.record("user-1", "tokens", 5)
    await deps.drain.run(seconds_max=5)
    await lose_redis(deps)
    await deps.drain.run(seconds_max=5)
    begun = await shard_row(deps)

    await deps.drain.run(seconds_max=5)
    await deps.quota.record("user-1", "tokens", 1)
    await deps.drain.run(seconds_max=5)
    await deps.drain.run(seconds_max=5)

    assert (await shard_row(deps))["epoch"] == begun["epoch"]
    assert await units(deps) == 6


async def test_an_epoch_that_redis_is_ahead_of_is_passed(deps: Deps) -> None:
    await deps.quota.record("user-1", "tokens", 5)
    await deps.drain.run(seconds_max=5)
    shard = deps.keys.shard_of(USER.id)
    await deps.redis.hset(shard.meta, "epoch", 7)

    await deps.drain.run(seconds_max=5)

    assert (await shard_row(deps))["epoch"] == 8
    assert await deps.redis.hget(shard.meta, "epoch") == b"8"
