"""The queries of seed 003, each a function: what a user did, what everybody did, and who did most.

A range is whole UTC days: the last N begin with the day in which the instant N days ago lies, so that they have all
that the seed's queries count, and of that first day what was before it. What spans a range is read from the rollups,
net of refunds and some seconds behind (`service.rollups`), and never from the log of usage. Every query is asked on
somebody's behalf: a user sees own rows, whatever user is asked for; what is of everybody is for admins.

Each raises InvalidValueError where *days*, *weeks* or *limit* is no integer from 1 to `DAYS_MAX`, `WEEKS_MAX` or
`ROWS_MAX`.
"""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypeVar

from service.bounds import check_number
from service.database import statement
from service.identity import acting_as
from service.rollups import WINDOW_DAYS

if TYPE_CHECKING:
    from uuid import UUID

    from service.database import Database
    from service.identity import Identity

__all__ = [
    "DAYS_MAX",
    "ROWS_MAX",
    "WEEKS_MAX",
    "WINDOW_DAYS",
    "Action",
    "CreditSummary",
    "Day",
    "FormatAndQuality",
    "PlatformAction",
    "Ranked",
    "Use",
    "Week",
    "by_action",
    "by_format_and_quality",
    "credit_summary",
    "daily",
    "history",
    "platform",
    "ranking",
    "weekly_trends",
]

ROWS_MAX = 1_000  # of a list that is asked for
DAYS_MAX = 3_660  # ten years
WEEKS_MAX = DAYS_MAX // 7
_DAYS = 30
_PLATFORM_DAYS = 7
_WEEKS = 12
_HISTORY = 100
_RANKS = 20


@dataclass(frozen=True, slots=True)
class Use:
    """A record of usage, as it was logged."""

    id: UUID
    user_id: UUID
    action: str
    amount: int
    credits_consumed: Decimal
    metadata: dict[str, Any] | None
    created_at: dt.datetime
    format: str | None
    quality: str | None


@dataclass(frozen=True, slots=True)
class CreditSummary:
    """What a user did, and the credits of it; no average of nothing."""

    total_credits_consumed: Decimal
    total_actions: int
    avg_credits_per_action: Decimal | None


@dataclass(frozen=True, slots=True)
class Action:
    """How often a user did an action."""

    action: str
    action_count: int
    total_credits: Decimal
    avg_credits: Decimal | None


@dataclass(frozen=True, slots=True)
class FormatAndQuality:
    """How often a user asked for a format and quality."""

    format: str
    quality: str
    usage_count: int
    total_credits: Decimal


@dataclass(frozen=True, slots=True)
class Day:
    """What a user did on a UTC day."""

    day: dt.date
    daily_actions: int
    daily_credits: Decimal


@dataclass(frozen=True, slots=True)
class PlatformAction:
    """How often everybody did an action, and how many users that were."""

    action: str
    total_actions: int
    unique_users: int
    total_credits: Decimal
    avg_credits: Decimal | None


@dataclass(frozen=True, slots=True)
class Ranked:
    """A user among those who used most credits."""

    user_id: UUID
    username: str | None
    total_credits: Decimal
    total_actions: int


@dataclass(frozen=True, slots=True)
class Week:
    """How often everybody did an action in a week, from its Monday on."""

    week: dt.date
    action: str
    weekly_actions: int
    weekly_credits: Decimal


_Row = TypeVar("_Row")


async def history(
    database: Database, identity: Identity, user_id: UUID, *, limit: int = _HISTORY
) -> list[Use]:
    """The last *limit* records of a user, the newest first."""
    check_number(limit, field="limit", most=ROWS_MAX)
    rows = await _fetch(database, identity, "user_history", user_id, limit)
    return [
        Use(**{**row, "metadata": row["metadata"] and json.loads(row["metadata"])}) for row in rows
    ]


async def credit_summary(
    database: Database,
    identity: Identity,
    user_id: UUID,
    *,
    days: int = _DAYS,
    today: dt.date | None = None,
) -> CreditSummary:
    """What a user did in the last *days* together; *today* stands for PostgreSQL's UTC day, in tests."""
    (summary,) = await _ask(
        CreditSummary, database, identity, "user_credit_summary", user_id, _checked(days), today
    )
    return summary


async def by_action(
    database: Database,
    identity: Identity,
    user_id: UUID,
    *,
    days: int = _DAYS,
    today: dt.date | None = None,
) -> list[Action]:
    """What a user did in the last *days*, the dearest action first."""
    return await _ask(Action, database, identity, "user_by_action", user_id, _checked(days), today)


async def by_format_and_quality(
    database: Database,
    identity: Identity,
    user_id: UUID,
    *,
    days: int | None = None,
    today: dt.date | None = None,
) -> list[FormatAndQuality]:
    """What a user asked for in the last *days* (None: ever), where both were said; the dearest first."""
    asked = DAYS_MAX if days is None else _checked(days)
    return await _ask(
        FormatAndQuality, database, identity, "user_by_format_and_quality", user_id, asked, today
    )


async def daily(
    database: Database,
    identity: Identity,
    user_id: UUID,
    *,
    days: int = _DAYS,
    today: dt.date | None = None,
) -> list[Day]:
    """What a user did on each UTC day of the last *days* on which it did something, the newest first."""
    return await _ask(Day, database, identity, "user_daily", user_id, _checked(days), today)


async def platform(
    database: Database,
    identity: Identity,
    *,
    days: int = _PLATFORM_DAYS,
    today: dt.date | None = None,
) -> list[PlatformAction]:
    """What everybody did in the last *days*, the dearest action first.

    Raises:
        asyncpg.InsufficientPrivilegeError: *identity* is no admin.
    """
    return await _ask(
        PlatformAction, database, identity, "platform_by_action", _checked(days), today
    )


async def ranking(database: Database, identity: Identity, *, limit: int = _RANKS) -> list[Ranked]:
    """Who used most credits in the last `WINDOW_DAYS`; a user sees the own place alone.

    The window ends with the day of the last fold: for the seconds until the first one of a new day,
    that is yesterday.
    """
    check_number(limit, field="limit", most=ROWS_MAX)
    return await _ask(Ranked, database, identity, "user_ranking", limit)


async def weekly_trends(
    database: Database,
    identity: Identity,
    *,
    weeks: int = _WEEKS,
    today: dt.date | None = None,
) -> list[Week]:
    """What everybody did in the last *weeks* of seven days, by calendar week; the newest first.

    The first calendar week is of those of its days that lie in the range.

    Raises:
        asyncpg.InsufficientPrivilegeError: *identity* is no admin.
    """
    days = 7 * check_number(weeks, field="weeks", most=WEEKS_MAX)
    return await _ask(Week, database, identity, "platform_by_week", days, today)


def _checked(days: int) -> int:
    return check_number(days, field="days", most=DAYS_MAX)


async def _ask(
    kind: type[_Row], database: Database, identity: Identity, name: str, *arguments: Any
) -> list[_Row]:
    return [kind(**row) for row in await _fetch(database, identity, name, *arguments)]


async def _fetch(database: Database, identity: Identity, name: str, *arguments: Any) -> list[Any]:
    async with acting_as(database, identity, readonly=True) as connection:
        rows: list[Any] = await connection.fetch(statement("service", name), *arguments)
    return rows
