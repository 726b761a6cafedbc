"""A Redis that was set back to before what was applied last, and has admitted more since."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from quota.keys import ShardKeys
from quota.values import parse_user_id
from service.database import statement
from service.reconcile import SYNCED, Reconciler
from service.tiers import stored_rules
from service.verify import Verifier
from worker.deps import Deps
from worker.tidy import watch_logs

USER = parse_user_id("user-1")
_AHEAD_MS = 30_000


@pytest.fixture
def shard(deps: Deps) -> ShardKeys:
    return deps.keys.shard_of(USER.id)


async def drain(deps: Deps) -> None:
    await deps.drain.run(seconds_max=5)


async def units(deps: Deps) -> int:
    async with deps.database.connection() as connection:
        return int(
            await connection.fetchval("SELECT coalesce(sum(amount), 0)::bigint FROM usage_logs")
        )


async def row_of(deps: Deps, shard: ShardKeys) -> Any:
    async with deps.database.connection() as connection:
        return await connection.fetchrow(statement("service", "shard_state"), shard.index)


async def synced(deps: Deps) -> bool:
    reconciler = Reconciler(deps.database, deps.redis, deps.keys, grace_ms=3_600_000)
    [checked] = await reconciler.check([USER.id])
    return checked.outcome == SYNCED


async def backlog(deps: Deps, shard: ShardKeys) -> float | None:
    await watch_logs(deps)
    return deps.registry.get_sample_value(
        "allotment_log_backlog_records", {"shard": str(shard.index)}
    )


@asynccontextmanager
async def lost_since(deps: Deps, shard: ShardKeys) -> AsyncIterator[None]:
    """A block of which the Redis that takes over knows nothing; the clock of the lost one was ahead."""
    pattern = f"{deps.keys.prefix}:*"
    kept = {key: await deps.redis.dump(key) async for key in deps.redis.scan_iter(pattern)}
    seconds, _ = await deps.redis.time()
    ahead = await deps.redis.xadd(shard.log, {"v": "0"}, id=f"{int(seconds) * 1000 + _AHEAD_MS}-0")
    await deps.redis.xdel(shard.log, ahead)
    yield
    await deps.redis.delete(*[key async for key in deps.redis.scan_iter(pattern)])
    for key, dump in kept.items():
        await deps.redis.restore(key, 0, dump, replace=True)


async def test_what_a_redis_with_a_slower_clock_admits_after_it_was_set_back_is_applied(
    deps: Deps, shard: ShardKeys
) -> None:
    await deps.quota.record("user-1", "tokens", 1)
    await drain(deps)
    async with lost_since(deps, shard):
        await deps.quota.record("user-1", "tokens", 10)
        await drain(deps)

    first = await deps.quota.consume("user-1", "tokens", 100, key="after")
    await drain(deps)

    assert first.allowed
    assert await units(deps) == 111
    assert (await deps.quota.check("user-1", "tokens")).used == 111
    again = await deps.quota.consume("user-1", "tokens", 100, key="after")
    await drain(deps)
    assert again.replayed
    assert await units(deps) == 111
    assert await synced(deps)
    rules = await stored_rules(deps.database)
    assert rules is not None
    report = await Verifier(
        deps.database, rules, shards=deps.settings.shards, grace_ms=3_600_000
    ).run()
    assert report.found == 0


async def test_also_when_its_clock_has_passed_the_stored_position_since(
    deps: Deps, shard: ShardKeys
) -> None:
    await deps.quota.record("user-1", "tokens", 1)
    await drain(deps)
    async with lost_since(deps, shard):
        await deps.quota.record("user-1", "tokens", 10)
        await drain(deps)
    await deps.quota.record("user-1", "tokens", 100)
    await deps.redis.xadd(shard.log, {"v": "1"}, id="99999999999999-0")  # as if much later
    await deps.redis.xdel(shard.log, "99999999999999-0")
    await deps.quota.record("user-1", "tokens", 1000)

    await drain(deps)

    assert await units(deps) == 1111
    assert (await deps.quota.check("user-1", "tokens")).used == 1111


async def test_a_user_that_is_loaded_before_that_is_applied_counts_each_record_once(
    deps: Deps, shard: ShardKeys
) -> None:
    for _ in range(5):
        await deps.quota.record("user-1", "tokens", 1)
        await drain(deps)
    async with lost_since(deps, shard):
        await deps.quota.record("user-1", "tokens", 10)
        await drain(deps)
    await deps.quota.record("user-1", "tokens", 100)

    await deps.loader.load_shard(deps.keys, shard)  # as an application may, before any worker
    before = (await deps.quota.check("user-1", "tokens")).used
    await drain(deps)

    assert before == 115
    assert (await deps.quota.check("user-1", "tokens")).used == 115
    assert await units(deps) == 115


async def test_a_mender_that_dies_after_its_commit_is_followed_by_another(
    deps: Deps, shard: ShardKeys
) -> None:
    await deps.quota.record("user-1", "tokens", 1)
    await drain(deps)
    applied = (await row_of(deps, shard))["last_entry_id"]
    async with lost_since(deps, shard):
        await deps.quota.record("user-1", "tokens", 10)
        await drain(deps)
    await deps.quota.record("user-1", "tokens", 100)
    before = await row_of(deps, shard)
    async with deps.database.connection() as connection:
        await connection.execute(
            statement("service", "next_epoch"), shard.index, before["epoch"], applied
        )
    await deps.quota.record("user-1", "tokens", 1000)  # Redis has not heard of the new epoch

    await drain(deps)

    after = await row_of(deps, shard)
    assert after["epoch"] == before["epoch"] + 2
    assert await deps.redis.hget(shard.meta, "epoch") == b"%d" % after["epoch"]
    assert await units(deps) == 1111
    assert (await deps.quota.check("user-1", "tokens")).used == 1111


async def test_a_repeat_after_it_is_not_taken_for_what_was_applied(
    deps: Deps, shard: ShardKeys
) -> None:
    """The last of the entries has a key that PostgreSQL knows, but is another entry."""
    await deps.quota.record("user-1", "tokens", 1)
    await drain(deps)
    async with lost_since(deps, shard):
        await deps.quota.record("user-1", "tokens", 10, key="again")
        await deps.quota.record("user-1", "tokens", 20, key="01890000-0000-7000-8000-000000000000")
        await drain(deps)
    await deps.quota.record("user-1", "tokens", 100)
    await deps.quota.record("user-1", "tokens", 10, key="again")
    await deps.quota.record("user-1", "tokens", 20, key="01890000-0000-7000-8000-000000000000")

    await drain(deps)

    assert await units(deps) == 131
    assert (await deps.quota.check("user-1", "tokens")).used == 131


async def test_holds_and_late_records_tell_too_what_was_applied(
    deps: Deps, shard: ShardKeys
) -> None:
    a_minute_ago = datetime.now(UTC) - timedelta(minutes=1)
    await deps.quota.record("user-1", "tokens", 1, occurred_at=a_minute_ago)
    kept = await deps.quota.reserve("user-1", "tokens", 5)
    gone = await deps.quota.reserve("user-1", "tokens", 7)
    await kept.commit(3)
    await gone.release()
    await drain(deps)
    async with lost_since(deps, shard):
        await deps.quota.record("user-1", "tokens", 10)
        await drain(deps)
    await deps.quota.record("user-1", "tokens", 100)

    await deps.loader.load_shard(deps.keys, shard)
    before = (await deps.quota.check("user-1", "tokens")).used
    await drain(deps)

    assert (before, await units(deps)) == (114, 114)
    assert (await deps.quota.check("user-1", "tokens")).used == 114
    assert await synced(deps)


async def test_a_log_of_which_nothing_can_be_proven_is_read_from_its_beginning(
    deps: Deps, shard: ShardKeys
) -> None:
    await deps.quota.record("user-1", "tokens", 1)
    await drain(deps)
    async with lost_since(deps, shard):
        await deps.quota.record("user-1", "tokens", 10)
        await drain(deps)
    await deps.redis.xtrim(shard.log, maxlen=0)
    for amount in (100, 1000):
        await deps.quota.record("user-1", "tokens", amount)

    await drain(deps)
    await drain(deps)

    assert await units(deps) == 1111
    assert (await deps.quota.check("user-1", "tokens")).used == 1111
    assert await synced(deps)


async def test_the_backlog_is_what_waits_after_a_redis_was_set_back(
    deps: Deps, shard: ShardKeys
) -> None:
    await deps.quota.record("user-1", "tokens", 1)
    await drain(deps)
    async with lost_since(deps, shard):
        await deps.quota.record("user-1", "tokens", 10)
        await drain(deps)
    await deps.quota.record("user-1", "tokens", 100)
    await deps.loader.load_shard(deps.keys, shard)

    waiting = await backlog(deps, shard)
    await drain(deps)

    assert waiting == 1
    assert await backlog(deps, shard) == 0
