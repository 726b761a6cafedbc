"""Folds what was applied into days, months and lifetimes: each run exactly once, some seconds after it.

The apply transaction leaves one row a run (`models.UsageRun`). A fold takes all that there are, sums their rows of
`usage_logs` up in a few statements, adds that to every rollup, and deletes the notes, in one transaction: killed
before the commit, nothing happened; after it, the notes are gone. One fold at a time: the fence is a lock, which goes
with the connection that has it. All of it sees one snapshot, so what it counts anew for a user (`models.StaleRollup`:
a refund, another time zone) has exactly the rows that are folded, those of this fold among them.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import asyncpg

from service.database import statement
from service.pace import USERS_MAX, Pace, RecountTooSlowError
from service.subscribed import store_again

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from uuid import UUID

    from service.database import Database

__all__ = [
    "WINDOW_DAYS",
    "Fold",
    "Folded",
    "RunsIncompleteError",
    "fold_all",
    "fold_once",
    "folding",
    "rollup_lag",
]

Result = TypeVar("Result")

WINDOW_DAYS = 30  # of `usage_last_30_days`, before this UTC day: it has 31
_RUNS_MAX = 2_000  # looked at for one fold
_RECORDS_MAX = 400_000  # in one fold: some seconds' work
_RECOUNT_S_MAX = 10.0  # of users in one fold of a worker: it is to end before its job does, with the fold of runs
_FOLD_S_MAX = 300.0  # of one statement, which may be about all that one user ever did
# The plan of a fold must be made for that fold; sorting and hashing a fold fits into so much memory.
_SETTINGS = "SET LOCAL plan_cache_mode = force_custom_plan; SET LOCAL work_mem = '64MB'"


class RunsIncompleteError(Exception):
    """Rows of a run are not where it says: the database was restored from a dump, or rows were changed by hand.

    Nothing is folded until `allotment rebuild` has counted everything anew.
    """

    def __init__(self, *, noted: int, found: int) -> None:
        super().__init__(
            f"{noted} records were applied and are to be summed up, and {found} of them are found: "
            "run `allotment rebuild`"
        )
        self.noted = noted
        self.found = found


@dataclass(frozen=True, slots=True)
class Folded:
    """What a fold came to: records of runs, and users counted anew; *more*: something was left for the next."""

    records: int
    users: int
    more: bool


async def fold_all(
    database: Database,
    *,
    today: dt.date | None = None,
    seconds_max: float,
    pace: Pace | None = None,
    recount_s_max: float = _RECOUNT_S_MAX,
) -> Folded | None:
    """Fold until nothing is left or the time is up; None: somebody else is at it.

    *pace* is what the process knows of earlier calls: who was too slow to be counted anew does not hold up others.

    Raises:
        RunsIncompleteError
        RecountTooSlowError: users took longer than *recount_s_max*; with the same *pace*, fewer are next.
    """
    pace = pace or Pace()
    until = time.monotonic() + seconds_max
    records = users = 0
    users_max = (
        0  # first runs alone: a user whom it takes too long to count anew must not hold them up
    )
    while True:
        try:
            folded = await fold_once(
                database,
                today=today,
                users_max=users_max,
                without=pace.left_alone(),
                recount_s_max=recount_s_max,
            )
        except RecountTooSlowError as error:
            pace.too_slow(error.users)
            raise
        if folded is None:
            return Folded(records, users, more=True) if records or users else None
        records += folded.records
        users += folded.users
        if folded.users:
            pace.in_time()
        if (users_max and not folded.more) or time.monotonic() >= until:
            return Folded(records, users, folded.more or not users_max)
        if users_max or not folded.more:
            users_max = pace.users_max


async def fold_once(
    database: Database,
    *,
    today: dt.date | None = None,
    records_max: int = _RECORDS_MAX,
    users_max: int = USERS_MAX,
    without: Sequence[UUID] = (),
    recount_s_max: float | None = None,
) -> Folded | None:
    """One fold, of a bounded number of records; *today* stands for PostgreSQL's UTC day, in tests.

    At most *users_max* users are counted anew, none of *without*. None: somebody else is folding.

    Raises:
        RunsIncompleteError
        RecountTooSlowError: nothing was folded.
    """

    async def act(fold: Fold) -> Folded:
        runs, more = await fold.runs(records_max)
        await fold.end_streaks()
        # Counted anew before all runs are folded, users would have rows that are folded again.
        if not users_max or more:
            return Folded(runs, 0, more)
        stale = await fold.connection.fetch(statement("service", "fold_stale"), users_max, without)
        if not stale:
            await fold.reset_platform_if_due()
            return Folded(runs, 0, more)
        users = [row["user_id"] for row in stale]
        try:
            async with asyncio.timeout(recount_s_max):
                await fold.count_anew(users)
        except TimeoutError as error:
            raise RecountTooSlowError(users, recount_s_max or _FOLD_S_MAX) from error
        changes = [row["change"] for row in stale]
        await fold.connection.execute(statement("service", "fold_forget_stale"), users, changes)
        return Folded(runs, len(stale), more=True)

    return await folding(database, act, today=today)


async def folding(
    database: Database,
    act: Callable[[Fold], Awaitable[Result]],
    *,
    today: dt.date | None = None,
    undo: bool = False,
) -> Result | None:
    """Have *act* change rollups behind the fence, in one transaction and one snapshot; or *undo* all of it.

    None: somebody else is behind it.
    """
    async with database.connection() as connection:
        try:
            return await _behind_fence(connection, act, today, undo=undo)
        except asyncpg.LockNotAvailableError:
            return None


async def rollup_lag(database: Database) -> float:
    """For how many seconds what waits longest to be folded has waited; 0: nothing waits."""
    async with database.connection() as connection:
        seconds: float = await connection.fetchval(statement("service", "rollup_lag"))
    return seconds


async def _behind_fence(
    connection: asyncpg.Connection[Any],
    act: Callable[[Fold], Awaitable[Result]],
    today: dt.date | None,
    *,
    undo: bool,
) -> Result:
    transaction = connection.transaction(isolation="repeatable_read")
    await transaction.start()
    try:
        await connection.execute(statement("service", "fold_lock"))
        await connection.execute(_SETTINGS)
        await connection.execute(statement("service", "fold_tables"))
        since = await _slide_window(connection, today)
        result = await act(Fold(connection, since, now=_noon_of(today)))
    except BaseException:
        if not connection.is_closed():
            await transaction.rollback()
        raise
    await (transaction.rollback() if undo else transaction.commit())
    return result


@dataclass(frozen=True, slots=True)
class Fold:
    """One transaction behind the fence; *since* is the first day of the window of 30 days."""

    connection: asyncpg.Connection[Any]
    since: dt.date
    now: dt.datetime | None  # PostgreSQL's, but for tests

    async def runs(self, records_max: int = _RECORDS_MAX) -> tuple[int, bool]:
        """Fold the runs that there are; how many records that was, and whether some were left.

        Raises:
            RunsIncompleteError
        """
        rows = await self.connection.fetch(statement("service", "fold_runs"), _RUNS_MAX)
        runs = _first_of(rows, records_max)
        if runs:
            await self._stage(runs)
            await self._add([])
            await self._run("fold_forget_runs", [run["id"] for run in runs])
        more = len(runs) < len(rows) or len(rows) == _RUNS_MAX
        return sum(run["records"] for run in runs), more

    async def count_anew(self, users: Sequence[UUID]) -> None:
        """Make every rollup of *users* what their rows of `usage_logs`, less refunds, come to.

        There must be no run that is not folded.
        """
        await self.connection.execute("TRUNCATE folded, folded_daily, folded_sessions, folded_days")
        await self._run("fold_clear_months", users)
        await self._run("fold_clear_days", users)
        await self._run("fold_restage", users)
        await self._add(users)
        await store_again(self.connection, users)

    async def end_streaks(self, *, again: bool = False) -> None:
        """Set those to 0 that are over, once each quarter of an hour, or *again*."""
        await self._run("fold_end_streaks", self.now, again)

    async def reset_platform_if_due(self) -> None:
        """Sum up what is about everybody anew, after a rebuild, once nobody is left to be counted anew."""
        if await self.connection.fetchval(statement("service", "fold_platform_due")):
            await self._run("fold_reset_platform")

    async def _stage(self, runs: Sequence[Any]) -> None:
        """Sum up the rows of *runs*, and see that it is all of them, but for what is noted as changed since."""
        firsts = [run["first_at"] for run in runs if run["first_at"] is not None]
        lasts = [run["last_at"] for run in runs if run["last_at"] is not None]
        await self._run(
            "fold_stage",
            [run["id"] for run in runs],
            min(firsts, default=None),
            max(lasts, default=None),
        )
        found = await self.connection.fetchval("SELECT coalesce(sum(uses), 0)::bigint FROM folded")
        noted = sum(run["records"] for run in runs)
        if found == noted:
            return
        changed = await self.connection.fetchval("SELECT sum(rows)::bigint FROM stale_rollups")
        if not 0 < noted - found <= (changed or 0):
            raise RunsIncompleteError(noted=noted, found=found)

    async def _add(self, counted_anew: Sequence[UUID]) -> None:
        """Add what is staged to every rollup; of *counted_anew* it is all that they ever did."""
        await self._run("fold_daily", counted_anew)
        await self._run("fold_add_daily")
        await self._run("fold_add_actions")
        if counted_anew:
            await self._run("fold_reset_window", counted_anew, self.since)
            await self._run("fold_reset_last_days", counted_anew)
        else:
            await self._run("fold_add_window", self.since)
            await self._run("fold_last_days")
        await self._run("fold_add_months")
        await self._run("fold_add_features")
        await self._run("fold_add_active_days")
        if counted_anew:
            await self._run("fold_prune", counted_anew)
        await self._run("fold_lifetime", counted_anew)
        await self._run("fold_streaks", self.now)

    async def _run(self, name: str, *arguments: Any) -> None:
        await self.connection.execute(statement("service", name), *arguments, timeout=_FOLD_S_MAX)


def _noon_of(day: dt.date | None) -> dt.datetime | None:
    return None if day is None else dt.datetime.combine(day, dt.time(12), dt.UTC)


def _first_of(rows: Sequence[Any], records_max: int) -> list[Any]:
    """The first of the runs, with *records_max* records together; one of them in any case."""
    taken: list[Any] = []
    records = 0
    for row in rows:
        records += row["records"]
        if taken and records > records_max:
            break
        taken.append(row)
    return taken


async def _slide_window(connection: asyncpg.Connection[Any], today: dt.date | None) -> dt.date:
    """Take out of the window what has left it since the last fold; return its first day."""
    row = await connection.fetchrow(
        "SELECT window_since, (now() AT TIME ZONE 'UTC')::date AS today FROM rollup_state"
    )
    assert row is not None, "the migration made it"
    before: dt.date = row["window_since"]
    since: dt.date = (today or row["today"]) - dt.timedelta(days=WINDOW_DAYS)
    if since <= before:
        return before
    await connection.execute(
        statement("service", "fold_slide_window"), before, since, timeout=_FOLD_S_MAX
    )
    return since
