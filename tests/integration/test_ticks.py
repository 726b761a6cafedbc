"""A tick is several steps over several shards: what one of them stumbles over stops no other."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from quota.values import parse_user_id
from service.still import standing_still
from worker.alone import ShardsFailedError
from worker.deps import Deps
from worker.holds import expire_holds
from worker.jobs import drain_log
from worker.tidy import trim_logs

USERS = [f"user-{number}" for number in range(20)]  # in every shard
Damage = Callable[[Deps], Awaitable[Any]]

DAMAGES: dict[str, Damage] = {
    "a name in due that is no text": lambda deps: deps.redis.zadd(shard(deps).due, {b"\xff\xfe": 1}),
    "a name in due that is no user": lambda deps: deps.redis.zadd(shard(deps).due, {b"": 1}),
    "a due of another type": lambda deps: of_another_type(deps, shard(deps).due),
    "a meta of another type": lambda deps: of_another_type(deps, shard(deps).meta),
    "tallies of another type": lambda deps: of_another_type(deps, shard(deps).tallies),
    "a tally that is no number": lambda deps: deps.redis.hset(shard(deps).tallies, "lines", "many"),
    "a log of another type": lambda deps: of_another_type(deps, shard(deps).log),
}  # fmt: skip


def shard(deps: Deps) -> Any:
    return deps.keys.shards[0]


async def of_another_type(deps: Deps, key: str) -> None:
    await deps.redis.unlink(key)
    await deps.redis.rpush(key, "x")


async def tick(deps: Deps) -> int:
    applied: int = await drain_log({"deps": deps, "job_id": "tick"})
    return applied


async def applied_in(deps: Deps, shards: list[int]) -> int:
    users = [parse_user_id(user).id for user in USERS if index_of(deps, user) in shards]
    async with deps.database.connection() as connection:
        query = "SELECT count(*) FROM usage_logs WHERE user_id = ANY($1)"
        return int(await connection.fetchval(query, users))


def index_of(deps: Deps, user: str) -> int:
    return int(deps.keys.shard_of(parse_user_id(user).id).index)


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
async def test_a_damaged_key_stops_no_other_shard(deps: Deps, damage: Damage):
    for user in USERS:
        await deps.quota.record(user, "tokens", 1)
    others = [one.index for one in deps.keys.shards[1:]]
    waiting = sum(index_of(deps, user) in others for user in USERS)
    await damage(deps)

    await tick(deps)

    assert await applied_in(deps, others) == waiting > 0
    for index in others:
        backlog = deps.registry.get_sample_value(
            "allotment_log_backlog_records", {"shard": str(index)}
        )
        assert backlog == 0
        assert deps.registry.get_sample_value("allotment_log_bytes", {"shard": str(index)})


@pytest.mark.parametrize("name", [name for name in DAMAGES if "due" in name])
async def test_what_is_damaged_of_the_names_of_holds_heals(deps: Deps, name: str):
    await deps.quota.reserve(USERS[0], "event", 10, key="h", ttl=30)
    await deps.drain.run(seconds_max=10)
    await DAMAGES[name](deps)
    seconds, _ = await deps.redis.time()
    later = (int(seconds) + 3600) * 1000

    await expire_holds(deps, now_ms=later)

    assert await deps.redis.zcard(shard(deps).due) == 0
    await deps.drain.run(seconds_max=10)
    async with deps.database.connection() as connection:
        assert await connection.fetchval("SELECT status FROM holds") == "expired"


async def test_a_damaged_log_is_no_reason_not_to_trim_the_others(deps: Deps):
    for _ in range(3):
        for user in USERS:
            await deps.quota.record(user, "tokens", 1, metadata={"text": "x" * 4_000})
    await deps.drain.run(seconds_max=10)
    await of_another_type(deps, shard(deps).log)
    settings = deps.settings.model_copy(update={"log_bytes_max": 1})  # all that was applied may go

    with pytest.raises(ShardsFailedError, match=r"shard 0: .*WRONGTYPE"):
        await trim_logs(replace(deps, settings=settings))

    for one in deps.keys.shards[1:]:
        assert await deps.redis.xlen(one.log) == 1  # the last one applied stays


async def test_a_user_is_changed_though_another_shard_can_not_be_applied(deps: Deps):
    other = next(user for user in USERS if index_of(deps, user) == 0)
    mine = next(user for user in USERS if index_of(deps, user) != 0)
    for user in (other, mine):
        await deps.quota.record(user, "tokens", 1)
    await of_another_type(deps, shard(deps).log)
    settle = partial(deps.drain.run, seconds_max=5)

    async with standing_still(
        deps.database, deps.redis, deps.keys, parse_user_id(mine), settle=settle
    ):
        assert await applied_in(deps, [index_of(deps, mine)]) == 1
