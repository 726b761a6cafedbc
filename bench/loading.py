"""A cold load: a user that is not in Redis is brought there, while the log has so much that is not applied."""

from __future__ import annotations

import random
import time
from statistics import median
from typing import TYPE_CHECKING, Any

from quota.values import parse_user_id

if TYPE_CHECKING:
    from bench.report import Numbers
    from bench.scale import Scale
    from bench.stage import Stage
    from quota.keys import ShardKeys
    from quota.values import User

__all__ = ["cold_loads"]

_SECONDS_MAX = 300.0  # of applying what earlier rows admitted
_LINES_AN_ENTRY = 100
_BACKLOG = 10_000  # lines of calls that were really admitted; a larger one has their entries again
_BACKLOG_LARGE = 1_000_000
_SENT_AT_ONCE = 500  # entries


async def cold_loads(stage: Stage, scale: Scale) -> Numbers:
    """Milliseconds of a load in a process that has PostgreSQL, by the lines that wait in the shard's log.

    The median, each of another user; with the large backlog also the first of a process, which has the
    whole of it to read. The log is left as it is: this is the last row of a run.
    """
    deps = stage.deps
    while await deps.drain.run(seconds_max=_SECONDS_MAX):
        pass
    shard = deps.keys.shards[0]
    parsed = [parse_user_id(user) for user in stage.users]
    mine = [user for user in parsed if deps.keys.shard_of(user.id) is shard]
    numbers = {"cold_load_ms": (await _load_each(stage, shard, mine, scale.loads))[1]}
    before = await _last_id(stage, shard)
    source = stage.calls.of([user.text for user in mine])
    for _ in range(_BACKLOG // _LINES_AN_ENTRY):
        assert all(await stage.quota.consume_many(source.take(_LINES_AN_ENTRY)))
    _, numbers["cold_load_10k_ms"] = await _load_each(stage, shard, mine, scale.loads)
    if scale.large_backlog:
        await _repeat(stage, shard, behind=before, entries=_BACKLOG_LARGE // _LINES_AN_ENTRY)
        first, others = await _load_each(stage, shard, mine, scale.loads)
        numbers |= {"cold_load_first_1m_ms": first, "cold_load_1m_ms": others}
    return numbers


async def _load_each(
    stage: Stage, shard: ShardKeys, users: list[User], count: int
) -> tuple[float, float]:
    """Milliseconds of the first load, and the median of the others."""
    deps, times = stage.deps, []
    for user in random.Random(2002).sample(users, count):
        name = user.id.hex
        await stage.redis.delete(shard.user_of(name), shard.grants_of(name))
        started = time.perf_counter()
        unknown = await deps.loader.load_users(deps.keys, shard, [user], now_ms=0)
        times.append(1000 * (time.perf_counter() - started))
        assert not unknown
        assert await stage.redis.exists(shard.user_of(name))
    return times[0], median(times[1:])


async def _repeat(stage: Stage, shard: ShardKeys, *, behind: str, entries: int) -> None:
    """Put the entries that wait *behind* into the log again until there are so many."""
    found: list[Any] = await stage.redis.xrange(shard.log, min=f"({behind}")
    for start in range(len(found), entries, _SENT_AT_ONCE):
        async with stage.redis.pipeline(transaction=False) as pipe:
            for number in range(start, min(start + _SENT_AT_ONCE, entries)):
                pipe.xadd(shard.log, found[number % len(found)][1])
            await pipe.execute()


async def _last_id(stage: Stage, shard: ShardKeys) -> str:
    found: list[Any] = await stage.redis.xrevrange(shard.log, count=1)
    return found[0][0].decode() if found else "0-0"
