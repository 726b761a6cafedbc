"""A run: load and faults, then everything settles, then the books are held against the stores."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
from redis.exceptions import RedisError

from cli.chaos.book import read_book, told_by
from cli.chaos.errors import ChaosError
from cli.chaos.faults import Faults
from cli.chaos.producer import FINISH_SECONDS_MAX
from cli.chaos.schedule import schedule
from cli.chaos.stage import running_stage
from cli.demo.audit import audit
from cli.demo.drift import drift
from quota.errors import QuotaUnavailableError
from service.database import statement

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from uuid import UUID

    from cli.chaos.book import Told
    from cli.chaos.stage import Stage
    from cli.demo.audit import Audit
    from cli.demo.ledger import Ledger

__all__ = ["Outcome", "run_chaos"]

_SETTLE_SECONDS_MAX = (
    90.0  # a job of a killed worker waits for 40 s, a hold that Redis forgot for 30
)
_LOOK_S = 0.1
_SHOWN_MAX = 10  # of what is wrong, one by one


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a run."""

    audit: Audit
    over_admitted: int
    overdrawn_micro: int
    drifts: list[str]
    missing: list[str]
    beyond: list[str]
    forgotten: int
    admitted: int
    totals: Mapping[str, int]
    faults: Mapping[str, int]
    unanswered: int
    worker_exits: int
    slow_stops: int
    settle_seconds: float
    seed: int
    seconds: float

    @property
    def sound(self) -> bool:
        """Whether nothing was lost, counted twice or let past a limit, and Redis agrees with PostgreSQL."""
        found = self.as_dict()
        return not any(found[name] for name in _ZEROS)

    def as_dict(self) -> dict[str, Any]:
        """As JSON: first what is promised, then what helps to find out."""
        found = self.audit
        doubled = max(found.repeated + found.strange, found.usage_beyond, found.counter_beyond)
        return {
            "admitted": self.admitted,
            "applied": self.totals["applied"],
            "lost": max(found.lost, self.forgotten),
            "double_counted": doubled,
            "over_admitted": self.over_admitted,
            "drift_after_heal": len(self.drifts),
            "faults": dict(self.faults),
            "seed": self.seed,
            "seconds": round(self.seconds, 1),
            "altered": found.altered,
            "credits_off_micro": found.credits_off + self.overdrawn_micro,
            "quarantined": self.totals["quarantined"],
            "worker_exits": self.worker_exits,
            "slow_stops": self.slow_stops,
            "holds": self.totals["holds"],
            "holds_expired": self.totals["expired"],
            "unanswered": self.unanswered,
            "readmitted": found.answered_twice,
            "settle_seconds": round(self.settle_seconds, 1),
            "drifts": self.drifts[:_SHOWN_MAX],
            "missing": self.missing[:_SHOWN_MAX],
            "beyond": self.beyond,
        }


# The first four are the promise; where they hold, the others do too.
_ZEROS = (
    "lost",
    "double_counted",
    "over_admitted",
    "drift_after_heal",
    "altered",
    "credits_off_micro",
    "quarantined",
    "worker_exits",
    "slow_stops",
)


async def run_chaos(seconds: int, seed: int, *, tell: Callable[[str], object]) -> Outcome:
    """Do it all, and leave nothing behind.

    Raises:
        ChaosError, DemoError: it did not settle, or something ended that must not end.
        ServerError, SettingsError: it can not be run.
    """
    began = time.monotonic()
    async with running_stage(seed, tell=tell) as stage:
        faults = Faults(stage)
        tell(f"{seconds} s of load and faults, seed {seed}")
        await faults.run(schedule(seconds, seed), seconds=seconds)
        ended = time.monotonic()
        await _settled(stage)
        tell("everything is applied; auditing")
        return await _outcome(stage, faults, settle_seconds=time.monotonic() - ended, began=began)


async def _settled(stage: Stage) -> None:
    """Have the producers finish, and wait until all is applied and every hold has ended."""
    stage.tell("everything runs again; the producers ask for what they were not told")
    for worker in stage.workers:
        if not await worker.is_ready():
            raise ChaosError(f"{worker.name} did not come back: {worker.last_words}")
    finished = await asyncio.gather(
        *(producer.finish(seconds_max=FINISH_SECONDS_MAX + 10) for producer in stage.producers)
    )
    for producer, in_time in zip(stage.producers, finished, strict=True):
        if not in_time:
            raise ChaosError(f"{producer.name} did not finish: {producer.last_words}")
    until = time.monotonic() + _SETTLE_SECONDS_MAX
    while waiting := await _waiting(stage):
        if time.monotonic() > until:
            words = " | ".join(worker.last_words for worker in stage.workers)
            raise ChaosError(f"not settled after {_SETTLE_SECONDS_MAX:.0f} s: {waiting}; {words}")
        await asyncio.sleep(_LOOK_S)


async def _waiting(stage: Stage) -> str:
    """What is not done yet, in words."""
    try:
        behind = await stage.behind()
        async with stage.database.connection() as connection:
            row = await connection.fetchrow(statement("cli.chaos", "unsettled"))
        assert row is not None, "it counts, so it always has a row"
        for user in row["overdue"]:
            await stage.quota.roll(user)  # as any call would
    except (OSError, RedisError, asyncpg.PostgresError, QuotaUnavailableError) as error:
        return f"{type(error).__name__}: {error}"
    if behind or row["holds"] or row["stale"]:
        return f"{behind} logs, {row['holds']} open holds, {row['stale']} users to be dropped"
    return ""


async def _outcome(stage: Stage, faults: Faults, *, settle_seconds: float, began: float) -> Outcome:
    books = []
    for player in stage.producers:
        written = read_book(Path(player.part.book))
        numbers = [*written.answered, *written.open]
        books.append((written, {number: player.part.act(number) for number in numbers}))
    told = told_by(books, emptied=faults.counts["redis_emptied"] > 0)
    ledger = told.ledger
    found = await audit(stage.database, ledger)
    forgotten = await _forgotten(stage, told)
    missing = await _missing(stage, ledger) if found.missing else []
    beyond = await _beyond(stage, ledger) if found.repeated + found.strange else []
    async with stage.database.connection() as connection:
        over = await connection.fetchrow(statement("cli.chaos", "over_admitted"))
        totals = await connection.fetchrow(statement("cli.chaos", "totals"))
    assert over is not None
    assert totals is not None
    return Outcome(
        audit=found,
        over_admitted=over["units"],
        overdrawn_micro=over["overdrawn_micro"],
        drifts=await drift(stage.database, stage.quota, stage.users),
        missing=[*missing, *forgotten],
        beyond=beyond,
        forgotten=len(forgotten),
        admitted=totals["applied"]
        + len(forgotten)
        + found.missing
        - found.repeated
        - found.strange,
        totals=dict(totals),
        faults=dict(faults.counts),
        unanswered=len(ledger.unanswered),
        worker_exits=sum(worker.exits for worker in stage.workers),
        slow_stops=faults.slow_stops,
        settle_seconds=settle_seconds,
        seed=stage.seed,
        seconds=time.monotonic() - began,
    )


async def _missing(stage: Stage, ledger: Ledger) -> list[str]:
    """What was admitted and is not logged, and what became of the hold, if it was one."""
    found = []
    for user_id, key, line, feature, amount, *_ in ledger.entries:
        logged, hold = await _find(stage, user_id, key, line)
        if not logged:
            found.append(f"{user_id} {key}/{line} {amount} {feature}; hold: {hold}")
            if len(found) == _SHOWN_MAX:
                break
    return found


async def _forgotten(stage: Stage, told: Told) -> list[str]:
    """What was admitted, with one answer or another, and is not logged at all."""
    found = []
    for user_id, key in told.admitted_somehow:
        logged, hold = await _find(stage, user_id, key, 0)
        if not logged:
            found.append(f"{user_id} {key}, told in several ways; hold: {hold}")
    return found


async def _beyond(stage: Stage, ledger: Ledger) -> list[str]:
    """What is logged more than once, or was admitted to nobody."""
    known = [(entry.user_id, entry.key) for entry in ledger.entries] + list(ledger.unanswered)
    users, keys = [user_id for user_id, _ in known], [key for _, key in known]
    async with stage.database.connection() as connection:
        rows = await connection.fetch(
            statement("cli.chaos", "logged_beyond"), users, keys, _SHOWN_MAX
        )
    return [
        "{user_id} {key}/{line} {amount} {feature}, {times} times, {first_at} to {last_at}".format(
            **row
        )
        for row in rows
    ]


async def _find(stage: Stage, user_id: UUID, key: str, line: int) -> tuple[int, str | None]:
    async with stage.database.connection() as connection:
        row = await connection.fetchrow(statement("cli.chaos", "find_record"), user_id, key, line)
    assert row is not None, "it counts, so it always has a row"
    return row["logged"], row["hold"]
