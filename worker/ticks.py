"""What each worker does by the clock: through arq, or by its own hand while arq can not.

arq writes a key for each job. Where its Redis is full or away, no job of it runs; but to apply the log
takes only reading it, and is what makes room.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog
from arq import cron

from worker.expiring import expire_subscriptions
from worker.jobs import drain_log, fold_usage, keep_partitions, tidy_logs
from worker.reconciling import reconcile_users

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from arq.cron import CronJob

    from worker.deps import Deps

__all__ = ["TICKS", "ByHand", "Tick"]

_MINUTE_S = 60
_HOUR_S = 3600
_LOOK_S = 1  # as often as the most frequent tick is due
_STOP_SECONDS_MAX = 8  # for what is under way; supervisors kill after 10
_log = structlog.get_logger("allotment.ticks")


class Tick(NamedTuple):
    """A job that is due each so many seconds, from so many after the full minute (or hours: minutes) on."""

    job: Callable[[dict[str, Any]], Awaitable[object]]
    every_s: int
    first: int = 0
    at_start: bool = False

    def cron(self) -> CronJob:
        """The tick as arq has it; with random ids, as a fixed one loses the wake-up that comes while the job runs."""
        when: dict[str, Any] = {"second": set(range(self.first, _MINUTE_S, self.every_s))}
        if self.every_s >= _HOUR_S:
            when = {"hour": set(range(0, 24, self.every_s // _HOUR_S)), "minute": self.first}
        job: Any = self.job
        return cron(job, **when, unique=False, run_at_startup=self.at_start)


TICKS = (
    Tick(drain_log, every_s=1, at_start=True),
    # Not each second: the more records a fold has, the fewer rows it writes for each.
    Tick(fold_usage, every_s=5, first=2),
    Tick(tidy_logs, every_s=30, first=15),
    # Behind the tidying, so that a round finds few other jobs at its side.
    Tick(reconcile_users, every_s=15, first=5),
    # Where nothing is over, a look at an empty index.
    Tick(expire_subscriptions, every_s=10, first=8),
    Tick(keep_partitions, every_s=6 * _HOUR_S, first=7, at_start=True),
)


class ByHand:
    """Runs what is due by itself, from when arq fails until it runs a tick again."""

    def __init__(self, deps: Deps) -> None:
        self._deps = deps
        self._wanted = asyncio.Event()
        self._ended = False
        self._ran: dict[Tick, float] = {}
        self._tasks: dict[Tick, asyncio.Task[object]] = {}

    def begin(self) -> None:
        """arq has failed."""
        if not self._wanted.is_set():
            _log.warning("ticks.by_hand")
            self._wanted.set()

    async def rest(self, _: dict[str, Any]) -> None:
        """arq has started a tick; as its `on_job_start`, which must not raise."""
        if self._wanted.is_set():
            _log.info("ticks.by_arq")
            self._wanted.clear()

    async def run(self) -> None:
        """Start what is due each second while arq fails, until cancelled."""
        while True:
            await self._wanted.wait()
            self._start_due(time.monotonic())
            await asyncio.sleep(_LOOK_S)

    def _start_due(self, now: float) -> None:
        for tick in () if self._ended else TICKS:
            ran, task = self._ran.get(tick), self._tasks.get(tick)
            if (ran is None or now - ran >= tick.every_s) and (task is None or task.done()):
                self._ran[tick] = now
                self._tasks[tick] = asyncio.create_task(self._run(tick))

    async def _run(self, tick: Tick) -> None:
        await tick.job({"deps": self._deps})

    async def finish(self) -> None:
        """Start nothing more, and wait for what is under way."""
        self._ended = True
        running = [task for task in self._tasks.values() if not task.done()]
        if running:
            _, late = await asyncio.wait(running, timeout=_STOP_SECONDS_MAX)
            for task in late:
                task.cancel()
