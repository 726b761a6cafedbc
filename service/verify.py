"""Rebuilds every derived figure from what is not derived, and says which are not as they should be.

Usage is in `usage_logs`, `usage_refunds` and `holds`, credits in `credit_entries`; counters, windows, totals
and balances are derived from them. A user's figures are read in one snapshot, so what is applied meanwhile is
in all of them or in none. Each batch of users has a snapshot of its own: one over all of them would keep
PostgreSQL from tidying up for as long as it takes. Not rebuilt: when overage was last set, what was used
beyond an allowance that became smaller, and when a window was opened.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from quota.values import User, instant_ms
from service.database import driver_of, statement
from service.figures import Figures
from service.recount import hold_shard_of
from service.users import mark_stale
from service.verify_credits import compare_credits
from service.verify_usage import STATEMENT_S_MAX, compare_usage, uses_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from datetime import datetime
    from uuid import UUID

    import asyncpg
    from sqlmodel.ext.asyncio.session import AsyncSession

    from quota.rules import Rules
    from service.database import Database
    from service.figures import Difference

__all__ = ["LISTED_MAX", "Finding", "Report", "Verifier"]

LISTED_MAX = 1_000  # differences that are told one by one; beyond, they are counted
_USERS_MAX = 500  # in one snapshot
_MENDED_MAX = 100  # users in one transaction, for which the worker of their shard waits
# The plan for a batch must be made for that batch: a kept one was made while the tables were small.
_PLAN_EACH_BATCH = "SET LOCAL plan_cache_mode = force_custom_plan"
# When a feature was used last is what the records say; else a trigger takes now for it.
_GIVES_LAST_USED = "SET LOCAL allotment.gives_last_used = on"


@dataclass(frozen=True, slots=True)
class Finding:
    """A difference, by what the application calls the user; *mended* if it is no more."""

    user: str
    difference: Difference
    mended: bool


@dataclass(slots=True)
class Report:
    """What a run came to: *found* differences, *mended* ones among them, and how many of each figure."""

    users: int = 0
    found: int = 0
    mended: int = 0
    by_figure: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)  # LISTED_MAX of them

    @property
    def remaining(self) -> int:
        """Differences that are still there."""
        return self.found - self.mended

    def add(self, name: str, differences: Iterable[Difference], *, mended: bool) -> None:
        """Take what was found of the user called *name*."""
        for difference in differences:
            self.found += 1
            self.mended += mended
            self.by_figure[difference.figure] += 1
            if len(self.findings) < LISTED_MAX:
                self.findings.append(Finding(name, difference, mended))


@dataclass(slots=True)
class Verifier:
    """Compares, and where it is told to *fix*, mends. *at* stands for PostgreSQL's now, in tests."""

    database: Database
    rules: Rules | None
    shards: int
    grace_ms: int
    fix: bool = False
    at: datetime | None = None

    async def run(
        self,
        *,
        user_id: UUID | None = None,
        tell: Callable[[int, int], object] | None = None,
    ) -> Report:
        """Compare every user, or one; *tell* is told how many of how many are done."""
        report, after = Report(), None
        total = 1 if user_id is not None else await self._count_users()
        only = None if user_id is None else [user_id]
        while True:
            users, figures = await self._look(after, only)
            report.users += len(users)
            names = {row["id"]: row["name"] for row in users}
            for affected in self._groups(figures):
                if self.fix:
                    await self._mend(affected, names, report)
                else:
                    for user, differences in _by_user(figures, affected).items():
                        report.add(names[user], differences, mended=False)
            if tell is not None:
                tell(report.users, max(total, report.users))
            if len(users) < _USERS_MAX:
                return report
            after = users[-1]["id"]

    async def _count_users(self) -> int:
        async with self.database.connection() as connection:
            total: int = await connection.fetchval("SELECT count(*) FROM users")
        return total

    async def _look(
        self, after: UUID | None, only: Sequence[UUID] | None
    ) -> tuple[list[Any], Figures]:
        """The next users, and what is wrong with them, in a snapshot."""
        async with (
            self.database.connection() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            await connection.execute(statement("service", "verify_lock_logs"))
            return await self._compare(connection, after, only)

    async def _compare(
        self,
        connection: asyncpg.Connection[Any],
        after: UUID | None,
        only: Sequence[UUID] | None,
    ) -> tuple[list[Any], Figures]:
        """As `_look`, in whatever transaction *connection* is in."""
        await connection.execute(f"{_PLAN_EACH_BATCH}; {_GIVES_LAST_USED}")
        rows = await connection.fetch(statement("service", "verify_users"), after, only, _USERS_MAX)
        users, figures = {row["id"]: row for row in rows}, Figures()
        if users:
            at = self.at or await connection.fetchval("SELECT clock_timestamp()")
            uses = await uses_of(connection, list(users))
            await compare_usage(
                connection, users, uses, self.rules, figures,
                at_ms=instant_ms(at), grace_ms=self.grace_ms,
            )  # fmt: skip
            await compare_credits(connection, users, uses, figures, at=at)
        return rows, figures

    def _groups(self, figures: Figures) -> list[list[UUID]]:
        """The users of whom something is wrong, those of a shard together."""
        by_shard: dict[int, list[UUID]] = defaultdict(list)
        for user_id in sorted({one.user_id for one in figures.differences}):
            by_shard[user_id.int % self.shards].append(user_id)
        return [
            users[start : start + _MENDED_MAX]
            for users in by_shard.values()
            for start in range(0, len(users), _MENDED_MAX)
        ]

    async def _mend(self, users: list[UUID], names: dict[UUID, str], report: Report) -> None:
        """Mend what is still wrong with *users* of one shard, in a transaction that holds it."""
        async with self.database.session() as session:
            await hold_shard_of(session, users[0])
            connection = await driver_of(session)
            await connection.fetch(statement("service", "verify_lock_users"), users)
            _, before = await self._compare(connection, None, users)
            await before.mend(connection, timeout_s=STATEMENT_S_MAX)
            _, after = await self._compare(connection, None, users)
            _note(session, before)
        found = {one[:3]: one for one in (*after.differences, *before.differences)}
        remaining = {one[:3] for one in after.differences}
        for key, one in found.items():
            report.add(names[one.user_id], [one], mended=key not in remaining)


def _by_user(figures: Figures, users: Sequence[UUID]) -> dict[UUID, list[Difference]]:
    found: dict[UUID, list[Difference]] = {user_id: [] for user_id in users}
    for one in figures.differences:
        if one.user_id in found:
            found[one.user_id].append(one)
    return found


def _note(session: AsyncSession, figures: Figures) -> None:
    """Have Redis load again whoever was mended."""
    for user_id in {one.user_id for one in figures.differences if one.mendable}:
        mark_stale(session, User(user_id, None))
