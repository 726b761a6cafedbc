"""Admission: alone and in a crowd, against PING, and what of it is Redis' own time."""

from __future__ import annotations

import asyncio
import gc
import time
from statistics import median
from typing import TYPE_CHECKING, Any

from bench.load import THREE_LIMITS
from quota.values import parse_user_id

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.report import Numbers
    from bench.scale import Scale
    from bench.stage import Stage

__all__ = [
    "admit_all",
    "admit_concurrent",
    "admit_vs_ping",
    "memory_per_key",
    "redis_time",
]

_BATCH = 500  # calls of one consume_many, as an application that empties a queue of its own
_BATCHES_AT_ONCE = 4
_BLOCK = 50  # calls of one kind in a row: short against the waves of other load on the machine
_RECORDS_A_CALL = 100  # of DESIGN 12
_CALLS_A_BLOCK = 5  # a few milliseconds, of which many pass without another process on the core


async def admit_all(stage: Stage, calls: Sequence[dict[str, Any]]) -> None:
    """Have every one of *calls* admitted, by several tasks that bring batches."""
    starts = iter(range(0, len(calls), _BATCH))

    async def bring() -> None:
        for start in starts:
            decisions = await stage.quota.consume_many(calls[start : start + _BATCH])
            refused = next((one for one in decisions if not one), None)
            if refused is not None:
                raise RuntimeError(f"the load is made to be admitted, but: {refused!r}")

    async with asyncio.TaskGroup() as group:
        for _ in range(_BATCHES_AT_ONCE):
            group.create_task(bring())


async def admit_vs_ping(stage: Stage, scale: Scale) -> Numbers:
    """One caller that waits each time: the median of `consume` by that of `ping`."""
    rounds = [await _ping_round(stage, scale.ping_calls) for _ in range(scale.rounds)]
    return {
        "admit_vs_ping": median(consume / ping for consume, ping in rounds),
        "consume_us": 1e6 * median(consume for consume, _ in rounds),
        "ping_us": 1e6 * median(ping for _, ping in rounds),
    }


async def _ping_round(stage: Stage, calls: int) -> tuple[float, float]:
    """Median seconds of a `consume` and of a `ping`, in turn by blocks."""
    consumes: list[float] = []
    pings: list[float] = []
    clock, consume, ping = time.perf_counter, stage.quota.consume, stage.redis.ping
    for _ in range(0, calls, _BLOCK):
        for call in stage.calls.take(_BLOCK):
            started = clock()
            await consume(**call)
            consumes.append(clock() - started)
        for _ in range(_BLOCK):
            started = clock()
            await ping()
            pings.append(clock() - started)
    return median(consumes), median(pings)


async def admit_concurrent(stage: Stage, scale: Scale) -> Numbers:
    """Decisions a second in one process, by many tasks of which each waits for its own."""
    rates = []
    for _ in range(scale.rounds):
        calls = iter(stage.calls.take(scale.concurrent_records))
        gc.freeze()  # an application has not all of its calls in memory beforehand

        async def loop(calls: Any = calls) -> None:
            for call in calls:
                await stage.quota.consume(**call)

        started = time.perf_counter()
        await asyncio.gather(*(loop() for _ in range(scale.concurrent_tasks)))
        rates.append(scale.concurrent_records / (time.perf_counter() - started))
        gc.unfreeze()
    return {"admit_concurrent_per_second": median(rates)}


async def redis_time(stage: Stage, scale: Scale) -> Numbers:
    """Microseconds that Redis works on a record: of the mixed load, and where three limits bind."""
    shard = stage.deps.keys.shards[0]
    mine = [
        user for user in stage.users if stage.deps.keys.shard_of(parse_user_id(user).id) is shard
    ]
    mixed, limited = [], []
    for _ in range(scale.rounds):
        mixed.append(await _script_us(stage, mine, scale.redis_calls, feature=None))
        limited.append(await _script_us(stage, mine, scale.redis_calls, feature=THREE_LIMITS))
    return {
        "redis_us_per_record": median(mixed),
        "redis_us_per_record_three_limits": median(limited),
    }


async def _script_us(stage: Stage, users: list[str], calls: int, *, feature: str | None) -> float:
    """The median of blocks of calls: Redis takes the time by the clock, in which others work too."""
    source, blocks = stage.calls.of(users), []
    for _ in range(calls // _CALLS_A_BLOCK):
        await stage.redis.config_resetstat()
        for _ in range(_CALLS_A_BLOCK):
            await stage.quota.consume_many(source.take(_RECORDS_A_CALL, feature=feature))
        script = (await stage.redis.info("commandstats"))["cmdstat_evalsha"]
        assert script["calls"] == _CALLS_A_BLOCK, "each hundred has to be one call"
        blocks.append(script["usec"] / (_CALLS_A_BLOCK * _RECORDS_A_CALL))
    return float(median(blocks))


async def memory_per_key(stage: Stage) -> Numbers:
    """Bytes of Redis' memory for each key that is remembered."""
    size, count = 0, 0
    for shard in stage.deps.keys.shards:
        for marks in shard.marks:
            size += await stage.redis.memory_usage(marks, samples=0) or 0
            count += await stage.redis.hlen(marks)  # type: ignore[misc]
    return {"redis_bytes_per_key": size / count}
