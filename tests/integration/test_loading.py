"""A user that is not in Redis is loaded exactly, whatever happens between the steps of the load."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from redis.asyncio import Redis

from quota import Quota
from quota.loading import RequestLoader
from quota.values import parse_user_id
from service.loading import DatabaseLoader
from service.staleness import drop_stale_users
from service.tiers import stored_rules
from service.users import put_user
from worker.deps import Deps
from worker.load_server import LoadServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

USER = parse_user_id("user-1")


class PausingRedis(Redis):
    """A real client that stops after its first read of the log until it is told to go on."""

    def pause(self) -> None:
        self.has_read = asyncio.Event()
        self.go_on = asyncio.Event()

    async def xrange(self, *args: Any, **kwargs: Any) -> Any:
        found = await super().xrange(*args, **kwargs)
        self.has_read.set()
        await self.go_on.wait()
        return found


@asynccontextmanager
async def paused_loader(deps: Deps) -> AsyncIterator[tuple[PausingRedis, DatabaseLoader]]:
    async with PausingRedis.from_url(deps.settings.quota_redis) as redis:
        redis.pause()
        yield redis, DatabaseLoader(deps.database, redis, auto_provision=True, dedupe_ms=86_400_000)


async def forget(deps: Deps) -> None:
    shard = deps.keys.shard_of(USER.id)
    await deps.redis.delete(shard.user_of(USER.id.hex), shard.grants_of(USER.id.hex))


async def used(deps: Deps) -> int | None:
    return (await deps.quota.check("user-1", "tokens")).used


async def test_a_cold_user_has_what_is_applied_and_what_is_not_yet(deps: Deps) -> None:
    await deps.quota.record("user-1", "tokens", 5)
    await deps.drain.run(seconds_max=5)
    await deps.quota.record("user-1", "tokens", 3)

    await forget(deps)

    assert await used(deps) == 8


async def test_a_run_applied_between_reading_the_log_and_postgresql_counts_once(deps: Deps) -> None:
    await deps.quota.record("user-1", "tokens", 5)
    await forget(deps)
    async with paused_loader(deps) as (redis, loader):
        load = asyncio.create_task(loader.load(deps.keys, USER, now_ms=0))
        await redis.has_read.wait()

        assert await deps.drain.run(seconds_max=5) == 1
        redis.go_on.set()

        assert await load
    assert await used(deps) == 5


async def test_a_user_that_changes_during_its_load_is_not_installed_as_it_was(deps: Deps) -> None:
    await deps.quota.record("user-1", "tokens", 5)
    await forget(deps)
    shard = deps.keys.shard_of(USER.id)
    rules = await stored_rules(deps.database)
    assert rules is not None
    async with paused_loader(deps) as (redis, loader):
        load = asyncio.create_task(loader.load(deps.keys, USER, now_ms=0))
        await redis.has_read.wait()

        async with deps.database.session() as session:
            user = await put_user(session, USER, rules, at=datetime.now(UTC), tier="pro")
        await drop_stale_users(deps.database, deps.redis, deps.keys)
        redis.go_on.set()
        await load

    assert user.tier == "pro"
    assert not await deps.redis.exists(shard.user_of(USER.id.hex))
    assert (await deps.quota.balance("user-1")).tier == "pro"


async def test_a_load_that_an_epoch_overtakes_is_not_installed(deps: Deps) -> None:
    await deps.quota.record("user-1", "tokens", 5)
    await forget(deps)
    shard = deps.keys.shard_of(USER.id)
    async with paused_loader(deps) as (redis, loader):
        load = asyncio.create_task(loader.load(deps.keys, USER, now_ms=0))
        await redis.has_read.wait()

        await deps.redis.hset(shard.meta, "epoch", "99")
        redis.go_on.set()
        await load

    assert not await deps.redis.exists(shard.user_of(USER.id.hex))


async def test_a_crowd_of_first_calls_is_one_load(deps: Deps) -> None:
    server = LoadServer(deps.redis, deps.keys, deps.loader, deps.metrics)
    serving = asyncio.create_task(server.serve())
    try:
        loader = RequestLoader(deps.redis, timeout_s=5)
        async with Quota(deps.redis, prefix=deps.keys.prefix, loader=loader) as quota:
            decisions = await asyncio.gather(
                *(quota.consume("user-1", "tokens") for _ in range(200))
            )
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)

    assert all(decisions)
    assert await used(deps) == 200
    assert deps.registry.get_sample_value("allotment_users_loaded_total") == 1


async def test_two_loaders_at_once_install_one_standing(deps: Deps) -> None:
    await deps.quota.record("user-1", "tokens", 5)
    await forget(deps)

    loaded = await asyncio.gather(*(deps.loader.load(deps.keys, USER, now_ms=0) for _ in range(5)))

    assert loaded == [True] * 5
    assert await used(deps) == 5


async def test_a_crowd_on_a_cold_shard_asks_for_it_once(deps: Deps) -> None:
    class CountingLoader(DatabaseLoader):
        """A real loader that counts."""

        shards = 0

        async def load_shard(self, *args: Any) -> None:
            self.shards += 1
            await super().load_shard(*args)

    loader = CountingLoader(deps.database, deps.redis, auto_provision=True, dedupe_ms=86_400_000)
    async with Quota(deps.redis, prefix=deps.keys.prefix, loader=loader) as quota:
        decisions = await asyncio.gather(*(quota.consume(f"u-{n}", "tokens") for n in range(200)))

    assert all(decisions)
    assert loader.shards <= 2 * len(deps.keys.shards)  # the epoch, and the rules if they lagged


async def test_a_new_time_zone_gives_nobody_his_limits_again(deps: Deps) -> None:
    async def move(timezone: str) -> None:
        rules = await stored_rules(deps.database)
        assert rules is not None
        async with deps.database.session() as session:
            await put_user(session, USER, rules, at=datetime.now(UTC), timezone=timezone)
        await drop_stale_users(deps.database, deps.redis, deps.keys)

    await move("America/Los_Angeles")
    await deps.quota.consume("user-1", "event", 60)
    await deps.drain.run(seconds_max=5)
    await deps.quota.consume("user-1", "event", 40)

    for timezone in ("Asia/Tokyo", "America/Los_Angeles", "UTC"):
        await move(timezone)
        before = await deps.quota.consume("user-1", "event", 1)
        await deps.drain.run(seconds_max=5)
        await forget(deps)
        after = await deps.quota.consume("user-1", "event", 1)
        limits = {state.per: state.used for state in after.limits}
        assert not before
        assert not after
        assert limits == {"day": 100, "month": 100}


async def test_names_of_features_are_the_users_own(deps: Deps) -> None:
    names = ("event", "paid", "windows", "user", "rule", "line", "lines")

    receipt = await deps.quota.record("user-1", dict.fromkeys(names, 1))
    again = await asyncio.gather(
        *(deps.quota.record("user-1", {name: 1, "unit": 1}) for name in names)
    )

    assert receipt.recorded == len(names)
    assert all(one.recorded == 2 for one in again)


async def test_a_crowd_without_a_worker_asks_once_and_is_told_together(deps: Deps) -> None:
    loader = RequestLoader(deps.redis, timeout_s=0.5)
    async with Quota(
        deps.redis, prefix=deps.keys.prefix, loader=loader, load_timeout_s=0.5
    ) as quota:
        decisions = await asyncio.gather(*(quota.consume("user-1", "tokens") for _ in range(50)))

    assert {decision.code for decision in decisions} == {"unavailable"}
    assert await deps.redis.llen(deps.keys.loads) == 1


async def test_a_frozen_worker_does_not_keep_its_shard(deps: Deps) -> None:
    async with deps.database.connection() as connection:
        assert await connection.fetchval("SHOW idle_in_transaction_session_timeout") == "10s"


async def test_the_embedded_redis_frees_large_rings_aside(deps: Deps) -> None:
    assert await deps.redis.config_get("lazyfree-lazy-expire") == {"lazyfree-lazy-expire": "yes"}
