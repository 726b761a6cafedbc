"""How far the commits are behind the admissions: at half load, and when a worker is killed."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from bench.children import child, wait_until
from quota.values import parse_user_id

if TYPE_CHECKING:
    from bench.load import Calls
    from bench.report import Numbers
    from bench.scale import Scale
    from bench.stage import Stage

__all__ = ["fail_over", "lag_at"]

_TICK_S = 0.02
_WARM_UP_S = 1.0
_PERCENTILE = 0.99


class PacedLoad:
    """Brings calls at a steady rate, shard by shard, and sees when each was committed."""

    def __init__(self, stage: Stage, *, per_second: float) -> None:
        self._stage = stage
        self._per_second = per_second
        self._calls: list[Calls] = []
        for shard in stage.deps.keys.shards:
            of_shard = [
                user
                for user in stage.users
                if stage.deps.keys.shard_of(parse_user_id(user).id) is shard
            ]
            self._calls.append(stage.calls.of(of_shard))
        self._base: list[int] = []
        self.admitted = [0] * len(self._calls)
        self._waiting: list[list[tuple[int, float]]] = [[] for _ in self._calls]
        self.lags: list[float] = []  # of each batch; they are of one size

    async def run(self, *, seconds: float) -> None:
        """Bring calls for *seconds*, then wait until all are committed."""
        self._base = await self._stage.applied()
        started = time.perf_counter()
        brought = 0
        watching = asyncio.create_task(self._watch())
        try:
            while (elapsed := time.perf_counter() - started) < seconds:
                due = int(elapsed * self._per_second / len(self._calls)) - brought
                if due:
                    brought += due
                    shards = range(len(self._calls))
                    await asyncio.gather(*(self._bring(shard, due) for shard in shards))
                await asyncio.sleep(_TICK_S)
            await wait_until(self._all_committed, by=None, what="applying")
        finally:
            watching.cancel()

    async def committed(self) -> list[int]:
        """Records of each shard that were committed since the start."""
        now = await self._stage.applied()
        return [applied - base for applied, base in zip(now, self._base, strict=True)]

    async def _bring(self, shard: int, count: int) -> None:
        decisions = await self._stage.quota.consume_many(self._calls[shard].take(count))
        assert all(decisions), "the load is made to be admitted"
        self.admitted[shard] += count
        self._waiting[shard].append((self.admitted[shard], time.perf_counter()))

    async def _watch(self) -> None:
        while True:
            await self._look()
            await asyncio.sleep(_TICK_S)

    async def _look(self) -> None:
        committed, now = await self.committed(), time.perf_counter()
        for shard, waiting in enumerate(self._waiting):
            done = [at for up_to, at in waiting if up_to <= committed[shard]]
            self.lags += [now - at for at in done]
            del waiting[: len(done)]

    async def _all_committed(self) -> bool:
        await self._look()
        return not any(self._waiting)


async def lag_at(stage: Stage, scale: Scale, *, per_second: float) -> Numbers:
    """The 99th percentile of the seconds from a decision to its commit, with one worker."""
    async with child(stage, "worker"):
        await PacedLoad(stage, per_second=per_second).run(seconds=_WARM_UP_S)
        load = PacedLoad(stage, per_second=per_second)
        await load.run(seconds=scale.lag_seconds)
    lags = sorted(load.lags)
    return {"lag_p99_seconds": lags[int(len(lags) * _PERCENTILE)]}


async def fail_over(stage: Stage, scale: Scale, *, per_second: float) -> Numbers:
    """Seconds from the kill -9 of one of two workers until all admitted before it is committed."""
    async with child(stage, "worker") as victim, child(stage, "worker"):
        await PacedLoad(stage, per_second=per_second).run(seconds=_WARM_UP_S)
        load = PacedLoad(stage, per_second=per_second)
        running = asyncio.create_task(load.run(seconds=scale.lag_seconds))
        await asyncio.sleep(scale.lag_seconds / 2)
        victim.kill()
        killed, goal = time.perf_counter(), list(load.admitted)

        async def caught_up() -> bool:
            committed = await load.committed()
            return all(done >= due for done, due in zip(committed, goal, strict=True))

        await wait_until(caught_up, by=None, what="the other worker")
        seconds = time.perf_counter() - killed
        await running
    return {"fail_over_seconds": seconds}
