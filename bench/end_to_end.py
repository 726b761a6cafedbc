"""From the first call to the last commit, by our worker and by the naive one."""

from __future__ import annotations

import asyncio
import gc
import random
import signal
import time
from statistics import median
from typing import TYPE_CHECKING

from arq.connections import ArqRedis

from bench import naive
from bench.admitting import admit_all
from bench.children import child, wait_until
from quota.values import parse_user_id

if TYPE_CHECKING:
    from asyncio.subprocess import Process

    from bench.report import Numbers
    from bench.scale import Scale
    from bench.stage import Stage

__all__ = ["end_to_end_vs_naive", "reconcile_vs_without"]

_WARM_UP = 2_000
_WARM_UP_NAIVE = 100
_ENQUEUERS = 50
_COUNTED = "SELECT coalesce(sum(usage_count), 0) FROM feature_usage WHERE feature_name = $1"


async def end_to_end_vs_naive(stage: Stage, scale: Scale) -> Numbers:
    """Records a second from admission to commit, by jobs a second from enqueueing to commit.

    This process is the application; the workers are processes of their own. The naive one stands
    still while ours is measured, as its polling would take from it; ours is idle in its turn.
    """
    rates: list[tuple[float, float]] = []
    async with (
        child(stage, "worker") as worker,
        child(stage, "bench.naive") as other,
        ArqRedis.from_url(stage.settings.queue_redis) as queue,
    ):
        await _ours(stage, _WARM_UP, worker)
        await _naive(stage, _WARM_UP_NAIVE, queue, other)
        for _ in range(scale.rounds):
            other.send_signal(signal.SIGSTOP)
            ours = await _ours(stage, scale.end_to_end_records, worker)
            other.send_signal(signal.SIGCONT)
            rates.append((ours, await _naive(stage, scale.naive_jobs, queue, other)))
    return {
        "end_to_end_vs_naive": median(ours / theirs for ours, theirs in rates),
        "end_to_end_per_second": median(ours for ours, _ in rates),
        "naive_per_second": median(theirs for _, theirs in rates),
    }


async def reconcile_vs_without(stage: Stage, scale: Scale) -> Numbers:
    """Records a second while users are compared with PostgreSQL, by those while none is.

    A round of comparisons comes each fifteen seconds, which is about how long a measurement takes.
    """
    ratios: list[float] = []
    for _ in range(scale.reconcile_rounds):
        async with child(stage, "worker", RECONCILE_USERS_PER_ROUND="0") as worker:
            await _ours(stage, _WARM_UP, worker)
            without = await _ours(stage, scale.end_to_end_records, worker)
        async with child(stage, "worker") as worker:
            await _ours(stage, _WARM_UP, worker)
            ratios.append(await _ours(stage, scale.end_to_end_records, worker) / without)
    return {"reconcile_vs_without": median(ratios)}


async def _ours(stage: Stage, count: int, worker: Process) -> float:
    calls = stage.calls.take(count)
    goal = sum(await stage.applied()) + count

    async def all_committed() -> bool:
        return sum(await stage.applied()) >= goal

    gc.freeze()  # an application has not all of its calls in memory beforehand
    started = time.perf_counter()
    await admit_all(stage, calls)
    await wait_until(all_committed, by=worker, what="applying")
    seconds = time.perf_counter() - started
    gc.unfreeze()
    return count / seconds


async def _naive(stage: Stage, count: int, queue: ArqRedis, worker: Process) -> float:
    users = [str(parse_user_id(random.choice(stage.users)).id) for _ in range(count)]
    async with stage.deps.database.connection() as connection:
        goal = await connection.fetchval(_COUNTED, naive.FEATURE) + count

        async def all_committed() -> bool:
            return bool(await connection.fetchval(_COUNTED, naive.FEATURE) >= goal)

        waiting = iter(users)

        async def enqueue() -> None:
            for user in waiting:
                await queue.enqueue_job(
                    "write_usage", user, naive.FEATURE, 1, "2.5", _queue_name=naive.QUEUE
                )

        started = time.perf_counter()
        await asyncio.gather(*(enqueue() for _ in range(_ENQUEUERS)))
        await wait_until(all_committed, by=worker, what="the naive worker")
        return count / (time.perf_counter() - started)
