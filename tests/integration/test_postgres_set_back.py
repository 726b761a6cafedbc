"""A PostgreSQL that was restored to an earlier state, as from a backup or a standby that lagged."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
from structlog.testing import capture_logs

from quota import Quota
from quota.keys import ShardKeys
from quota.rules import Rules
from quota.values import parse_user_id
from service.reconcile import SYNCED, Reconciler
from service.rollups import fold_all
from service.rules_in_force import put_in_force
from service.tiers import stored_rules
from service.verify import Verifier
from worker.deps import Deps
from worker.jobs import drain_log
from worker.tidy import trim_logs

USER = parse_user_id("user-1")
Restore = Callable[[], Awaitable[None]]
_GAPS, _EPOCHS = "allotment_log_gaps_total", "allotment_epochs_begun_total"


@pytest.fixture
def shard(deps: Deps) -> ShardKeys:
    return deps.keys.shard_of(USER.id)


@pytest.fixture
async def backup(
    deps: Deps, postgres_url: str, database_url: str
) -> AsyncIterator[Callable[[], Awaitable[Restore]]]:
    """Copies the database as it is; what it answers puts the copy in its place, under running processes."""
    name = urlsplit(database_url).path.removeprefix("/")
    owner = await asyncpg.connect(postgres_url)
    copies: list[str] = []

    async def copied(new: str, old: str) -> None:
        await deps.database.close()
        await owner.execute(f"DROP DATABASE IF EXISTS {new} WITH (FORCE)")
        await owner.execute(f"CREATE DATABASE {new} TEMPLATE {old} STRATEGY FILE_COPY")

    async def take() -> Restore:
        copies.append(f"{name}_{len(copies)}")
        copy = copies[-1]
        await copied(copy, name)
        return lambda: copied(name, copy)

    yield take
    await deps.database.close()
    for copy in copies:
        await owner.execute(f"DROP DATABASE {copy} WITH (FORCE)")
    await owner.close()


async def tick(deps: Deps) -> None:
    await drain_log({"deps": deps})


async def use(deps: Deps, times: int) -> None:
    """So many entries, all applied: Redis cuts a log by nodes of a hundred."""
    for _ in range(times):
        await deps.quota.record("user-1", "tokens", 1)
    await tick(deps)


async def trim(deps: Deps) -> None:
    """Trim as when REPLAY_SECONDS are over for all that was applied."""
    crowded = deps.settings.model_copy(update={"log_bytes_max": 1})
    await trim_logs(dataclasses.replace(deps, settings=crowded))


async def units(deps: Deps) -> int:
    async with deps.database.connection() as connection:
        return int(
            await connection.fetchval("SELECT coalesce(sum(amount), 0)::bigint FROM usage_logs")
        )


async def outcome(deps: Deps) -> str:
    reconciler = Reconciler(deps.database, deps.redis, deps.keys, grace_ms=3_600_000)
    [checked] = await reconciler.check([USER.id])
    return checked.outcome


async def all_figures_agree(deps: Deps) -> bool:
    await fold_all(deps.database, seconds_max=5, pace=deps.pace)
    rules = await stored_rules(deps.database)
    assert rules is not None
    check = Verifier(deps.database, rules, shards=deps.settings.shards, grace_ms=3_600_000)
    return (await check.run()).found == 0


def sample(deps: Deps, name: str) -> float:
    return deps.registry.get_sample_value(name) or 0


def errors(logged: Any) -> list[Any]:
    return [one for one in logged if one["event"] == "shard.records_missing"]


async def test_a_backup_within_the_window_is_replayed_whole(
    deps: Deps, shard: ShardKeys, backup: Callable[[], Awaitable[Restore]]
) -> None:
    """Records, credits, holds, late ones and refunds' records alike: every figure is what it was (FAULTS 11)."""
    await deps.quota.record("user-1", "tokens", 5)
    await tick(deps)
    restore = await backup()
    await deps.quota.record("user-1", {"tokens": 2, "image": 3}, key="several")
    hold = await deps.quota.reserve("user-1", "tokens", 10)
    await hold.commit(4)
    await (await deps.quota.reserve("user-1", "tokens", 10)).release()
    await tick(deps)
    before = await units(deps)

    await restore()
    with capture_logs() as logged:
        await tick(deps)

    assert not errors(logged)
    assert await units(deps) == before == 14
    assert (await deps.quota.check("user-1", "tokens")).used == 11
    assert (await deps.quota.record("user-1", {"tokens": 2, "image": 3}, key="several")).replayed
    assert await outcome(deps) == SYNCED
    assert await all_figures_agree(deps)
    assert sample(deps, _GAPS) == 0


@pytest.mark.parametrize("ever_applied", [True, False], ids=["some applied", "nothing applied"])
async def test_a_backup_from_before_the_window_is_said_loudly_and_once(
    deps: Deps,
    shard: ShardKeys,
    backup: Callable[[], Awaitable[Restore]],
    ever_applied: bool,
) -> None:
    await deps.quota.check("user-1", "tokens")  # an epoch is begun at 0-0
    await use(deps, 1 if ever_applied else 0)
    restore = await backup()
    await use(deps, 250)
    await trim(deps)
    kept_from = (await deps.redis.xrange(shard.log, count=1))[0][0].decode()
    await tick(deps)
    epochs = sample(deps, _EPOCHS)

    await restore()
    with capture_logs() as logged:
        for _ in range(3):
            await tick(deps)

    [said] = errors(logged)
    assert said["log_level"] == "error"
    assert (said["shard"], said["log_kept_from"]) == (shard.index, kept_from)
    assert said["position"] < said["log_kept_from"]
    assert "restore a later backup" in said["advice"]
    assert sample(deps, _GAPS) == 1
    assert sample(deps, _EPOCHS) == epochs + 1
    backlog = deps.registry.get_sample_value(
        "allotment_log_backlog_records", {"shard": str(shard.index)}
    )
    assert backlog == 0
    # What the log still has is there, and Redis shows what PostgreSQL has.
    assert 0 < await units(deps) < 250
    assert (await deps.quota.check("user-1", "tokens")).used == await units(deps)
    assert await outcome(deps) == SYNCED
    await deps.quota.record("user-1", "tokens", 1)
    await deps.loader.load_shard(deps.keys, shard)
    await tick(deps)
    assert sample(deps, _EPOCHS) == epochs + 1


async def test_a_backup_of_the_instant_at_which_the_epoch_began_is_seen_to_lack_what_was_cut(
    deps: Deps, shard: ShardKeys, backup: Callable[[], Awaitable[Restore]]
) -> None:
    await use(deps, 1)
    await deps.redis.delete(shard.meta)
    await tick(deps)  # a new epoch, at the position that is stored now
    restore = await backup()
    await use(deps, 250)
    await trim(deps)

    await restore()
    with capture_logs() as logged:
        await tick(deps)

    assert len(errors(logged)) == 1


async def test_each_backup_that_lacks_something_is_said(
    deps: Deps, shard: ShardKeys, backup: Callable[[], Awaitable[Restore]]
) -> None:
    await use(deps, 1)
    first = await backup()
    await use(deps, 20)
    later = await backup()
    await use(deps, 250)
    await trim(deps)

    with capture_logs() as logged:
        for restore in (first, later, first):
            await restore()
            await tick(deps)
            await tick(deps)

    assert len(errors(logged)) == 3
    assert sample(deps, _GAPS) == 3


async def test_what_lies_behind_the_trimmed_part_is_no_loss(
    deps: Deps, shard: ShardKeys, backup: Callable[[], Awaitable[Restore]]
) -> None:
    await use(deps, 250)
    await trim(deps)
    restore = await backup()
    await use(deps, 50)

    await restore()
    with capture_logs() as logged:
        await tick(deps)

    assert not errors(logged)
    assert await units(deps) == 300


def _tiers(most: int) -> Rules:
    limits = {"limits": {"event": {"max": most, "per": "day"}}}
    document = {"default_tier": "free", "features": {}, "tiers": {"free": limits, "pro": limits}}
    return Rules.from_document(document)


async def _put(deps: Deps, most: int) -> Rules:
    return await put_in_force(deps.database, deps.redis, deps.keys, _tiers(most))


@asynccontextmanager
async def another_process(deps: Deps) -> AsyncIterator[Quota]:
    settings = deps.settings
    async with Quota(
        deps.redis, prefix=settings.key_prefix, shards=settings.shards, loader=deps.loader
    ) as quota:
        yield quota


async def test_tiers_that_were_restored_are_in_force_again_and_new_ones_come_into_force(
    deps: Deps, shard: ShardKeys, backup: Callable[[], Awaitable[Restore]]
) -> None:
    await _put(deps, 40)
    await deps.quota.consume("user-1", "event", 1)
    await tick(deps)
    restore = await backup()
    for most in (50, 60):
        await _put(deps, most)
    await deps.quota.consume("user-1", "event", 1)
    await tick(deps)

    await restore()
    with capture_logs() as logged:
        await tick(deps)
        await tick(deps)
    restored = (await deps.quota.check("user-1", "event")).limit
    applied = await _put(deps, 5)
    async with another_process(deps) as other:
        limits = [(await one.check("user-1", "event")).limit for one in (deps.quota, other)]

    assert [one["event"] for one in logged].count("tiers.redis_was_ahead") == 1
    assert restored == 40
    assert limits == [5, 5]
    assert await deps.redis.hget(shard.meta, "rules") == b"%d" % applied.version
    assert await outcome(deps) == SYNCED


async def test_tiers_that_are_applied_before_any_tick_pass_what_redis_has(
    deps: Deps, shard: ShardKeys, backup: Callable[[], Awaitable[Restore]]
) -> None:
    """The next version that PostgreSQL would give is the one that Redis has, of other tiers."""
    restore = await backup()
    put = await _put(deps, 50)
    await deps.quota.check("user-1", "event")

    await restore()
    applied = await _put(deps, 7)
    await tick(deps)

    assert applied.version == put.version + 1
    assert (await deps.quota.check("user-1", "event")).limit == 7


async def test_two_who_find_redis_ahead_make_one_version(
    deps: Deps, shard: ShardKeys, backup: Callable[[], Awaitable[Restore]]
) -> None:
    restore = await backup()
    before = await _put(deps, 50)
    rules = await stored_rules(deps.database)
    assert rules is not None
    await restore()

    both = await asyncio.gather(_put(deps, 7), _put(deps, 7), deps.rules.keep())
    await tick(deps)

    stored = await stored_rules(deps.database)
    assert stored is not None
    assert both[0].version == both[1].version == stored.version
    assert stored.version > before.version
    assert await deps.redis.hget(shard.meta, "rules") == b"%d" % stored.version
    assert (await deps.quota.check("user-1", "event")).limit == 7
