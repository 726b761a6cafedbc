"""`python -m cli.chaos.producer`: one application of a chaos run.

It acts until SIGTERM, then repeats what is still without an answer, and ends.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from cli.chaos.acts import act_of
from cli.chaos.book import GONE, Answered, Book, read_book
from cli.demo.drive import ask, is_missing
from quota.client import Quota
from quota.decision import UNAVAILABLE
from quota.errors import QuotaError, QuotaUnavailableError, UnknownHoldError
from quota.receipt import Receipt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cli.chaos.acts import Act
    from quota.hold import Settlement

__all__ = ["FINISH_SECONDS_MAX", "Part"]

FINISH_SECONDS_MAX = 60.0  # of repeating what has no answer, once everything runs again
_TASKS = 4
_BATCH_MAX = 25  # acts that a task makes at once
_PAUSE_S = 0.03  # between two batches: the load is to last, not to be large
_HOLDING_MAX = 100  # batches whose holds are open
_RETRY_S = 0.2


@dataclass(frozen=True, slots=True)
class Part:
    """What one producer is told: who it is, and where everything is."""

    producer: int
    seed: int
    began_ms: int
    users: tuple[str, ...]
    redis: str
    prefix: str
    shards: int
    book: str

    def words(self) -> tuple[str, ...]:
        """As the arguments of the module."""
        return ("cli.chaos.producer", json.dumps(asdict(self)))

    def act(self, number: int) -> Act:
        """The act of this *number*."""
        return act_of(
            number,
            producer=self.producer,
            seed=self.seed,
            began_ms=self.began_ms,
            users=self.users,
        )


class Producer:
    """Acts, books, repeats."""

    def __init__(self, part: Part, quota: Quota, book: Book, stop: asyncio.Event) -> None:
        self._part = part
        self._quota = quota
        self._book = book
        self._stop = stop
        self._until: float | None = None

    async def run(self, *, since: int, again: Sequence[int]) -> None:
        """Settle the acts of *again*, then make new ones from *since* on until told to stop."""
        number = since
        random = Random(self._part.producer)  # noqa: S311 - when it asks is no secret
        places = asyncio.Semaphore(_HOLDING_MAX)

        async def hold(acts: Sequence[Act]) -> None:
            try:
                await self._settle(acts)
            finally:
                places.release()

        async def work(group: asyncio.TaskGroup) -> None:
            nonlocal number
            while not self._stop.is_set():
                count = random.randint(1, _BATCH_MAX)
                first, number = number, number + count
                acts = [self._part.act(each) for each in range(first, first + count)]
                self._book.asks(acts)
                await places.acquire()
                group.create_task(hold([act for act in acts if act.reserves]))
                await self._settle([act for act in acts if not act.reserves])
                await asyncio.sleep(_PAUSE_S)

        async with asyncio.TaskGroup() as group:
            group.create_task(self._settle([self._part.act(each) for each in again], again=True))
            for _ in range(_TASKS):
                group.create_task(work(group))

    async def _settle(self, acts: Sequence[Act], *, again: bool = False) -> None:
        """Ask until each has an answer, or the time for that is over."""
        while acts:
            held = [act for act in acts if act.reserves]
            called = [act for act in acts if not act.reserves]
            answers, ends = await asyncio.gather(
                ask(self._quota, [act.call for act in called]),
                asyncio.gather(*(self._hold(act) for act in held)),
            )
            told: dict[int, Answered | None] = dict(
                zip((act.number for act in held), ends, strict=True)
            )
            for act, answer in zip(called, answers, strict=True):
                told[act.number] = None if is_missing(answer) else _answered(answer)
            self._book.answered(
                {
                    number: one._replace(again=again)
                    for number, one in told.items()
                    if one and one is not GONE
                }
            )
            again = True
            acts = [act for act in acts if told[act.number] is None]
            if acts and self._is_over():
                return
            await asyncio.sleep(_RETRY_S if acts else 0)

    def _is_over(self) -> bool:
        now = asyncio.get_running_loop().time()
        if self._stop.is_set() and self._until is None:
            self._until = now + FINISH_SECONDS_MAX
        return self._until is not None and now > self._until

    async def _hold(self, act: Act) -> Answered | None:
        """Reserve, wait, end; None when it is not known how it ended. All of it is safe to repeat."""
        arguments = act.call.arguments()
        try:
            hold = await self._quota.reserve(**arguments, ttl=act.ttl)
            if hold.decision.code == UNAVAILABLE:
                return None
            if not hold:
                return Answered([], fresh=False)
            if act.units == -1:
                return Answered([], fresh=False)  # nobody ends it; it must not be counted
            await asyncio.sleep(act.held_s)
            if act.units is None:
                settlement = await hold.release()
            else:
                settlement = await hold.commit(act.units)
                if settlement.status == "open":  # more than was held is denied
                    settlement = await hold.commit()
        except QuotaUnavailableError:
            return None
        except UnknownHoldError:
            # It ended, and Redis was emptied since, so that nobody remembers how: it stays unknown.
            return GONE
        return _settled(act, settlement)


def _answered(answer: object) -> Answered:
    if isinstance(answer, QuotaError):
        raise answer  # a record of ours that is not valid, or a key that stands for another one
    decisions = answer.decisions if isinstance(answer, Receipt) else (answer,)
    first = decisions[0]
    if not first.allowed:  # type: ignore[attr-defined]
        return Answered([], fresh=False)
    lines = [(one.feature, one.amount, one.cost_micro) for one in decisions]  # type: ignore[attr-defined]
    return Answered(lines, fresh=not first.replayed)  # type: ignore[attr-defined]


def _settled(act: Act, settlement: Settlement) -> Answered:
    """The lines that a committed hold is logged as: what was held, and what was more."""
    feature, held = act.call.feature, act.call.amounts[act.call.feature]
    kept = min(settlement.amount, held)
    surplus = settlement.amount - kept
    lines: list[tuple[str, int, int | None]] = []
    if kept:
        lines.append((feature, kept, None if surplus else settlement.cost_micro))
    if surplus:
        lines.append((feature, surplus, None))
    return Answered(lines, fresh=not settlement.replayed)


async def main(part: Part) -> None:
    """Act until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    path = Path(part.book)
    written = read_book(path)
    with Book(path) as book:
        async with Quota.from_url(part.redis, prefix=part.prefix, shards=part.shards) as quota:
            sys.stderr.write("producer.started\n")
            sys.stderr.flush()
            producer = Producer(part, quota, book, stop)
            await producer.run(since=written.next, again=list(written.open))


if __name__ == "__main__":
    asyncio.run(main(Part(**json.loads(sys.argv[1]))))
