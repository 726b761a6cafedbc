"""Which tiers a user was on and when, and how far the running stretch has gone (seeds 002, 004).

Days are those of the user's calendar. A day that a stretch has a part of is one of its days, so that the
first is day 1, and the last day is the one in which it ends, or that ends with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4
from zoneinfo import ZoneInfo

from sqlmodel import col, select

from models import Subscription
from quota.period import Calendar, window_at
from quota.values import instant_ms, instant_of, instant_text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import date, datetime

    from sqlmodel.ext.asyncio.session import AsyncSession

    from models import User

__all__ = [
    "Days",
    "Stretch",
    "days_of",
    "first_subscription",
    "running_subscription",
    "stretches_of",
]


class Days(NamedTuple):
    """The day that it is, of how many, and how many come after it; None of a stretch without an end."""

    day: int
    of: int | None
    remaining: int | None


@dataclass(frozen=True, slots=True)
class Stretch:
    """A time on a tier; *revenue* is what it brought in. An *ends_at* of None: it has no end of its own."""

    tier: str
    started_at: datetime
    ends_at: datetime | None
    status: str
    ended_at: datetime | None
    revenue: Decimal

    def as_dict(self, *, timezone: str, at: datetime) -> dict[str, Any]:
        """The fields as JSON values, with the days at *at*, or at its end."""
        days = days_of(self.started_at, self.ends_at, at=self.ended_at or at, timezone=timezone)
        return {
            "tier": self.tier,
            "status": self.status,
            "started_at": _text(self.started_at),
            "ends_at": _text(self.ends_at),
            "ended_at": _text(self.ended_at),
            "day": days.day,
            "days": days.of,
            "days_remaining": days.remaining,
            "revenue": f"{self.revenue:.2f}",
        }


def days_of(started_at: datetime, ends_at: datetime | None, *, at: datetime, timezone: str) -> Days:
    """Where *at* lies in a stretch, in days of the calendar of *timezone*.

    Before the start it is day 1, from the end on the last day.
    """
    calendar = Calendar(timezone)
    start_ms, at_ms = instant_ms(started_at), instant_ms(at)
    first = _date(start_ms, calendar)
    if ends_at is None:
        return Days((_date(max(start_ms, at_ms), calendar) - first).days + 1, None, None)
    last_ms = instant_ms(ends_at) - 1
    length = (_date(last_ms, calendar) - first).days + 1
    day = (_date(min(max(start_ms, at_ms), last_ms), calendar) - first).days + 1
    return Days(day, length, length - day)


async def running_subscription(session: AsyncSession, user: User) -> Subscription | None:
    """The row of the stretch that runs; None: the user has been on its tier since it was made."""
    query = select(Subscription).where(
        col(Subscription.user_id) == user.id, col(Subscription.status) == "active"
    )
    return (await session.exec(query)).one_or_none()


def first_subscription(user: User, *, tier: str) -> Subscription:
    """The row that *user* would have, had it been put on *tier* when it was made."""
    return Subscription(
        user_id=user.id,
        id=uuid4(),
        tier=tier,
        started_at=user.created_at,
        status="active",
        revenue=Decimal(0),
        term_revenue=Decimal(0),
    )


async def stretches_of(session: AsyncSession, user: User) -> Sequence[Stretch]:
    """Every stretch of *user*, oldest first; the last one runs."""
    query = select(Subscription).where(col(Subscription.user_id) == user.id)
    rows = (await session.exec(query)).all()
    if not rows:
        rows = [first_subscription(user, tier=user.tier)]
    # Of those that begin at one instant, only the last can be longer than that.
    rows = sorted(rows, key=lambda row: (row.started_at, row.ended_at is None, row.ended_at))
    return [
        Stretch(row.tier, row.started_at, row.ends_at, row.status, row.ended_at, row.revenue)
        for row in rows
    ]


def _date(at_ms: int, calendar: Calendar) -> date:
    """The date of the day that contains *at_ms*, also where clocks go back over midnight into it."""
    window = window_at("day", at_ms, calendar)
    assert window.end_ms is not None
    noon = instant_of((window.start_ms + window.end_ms) // 2)
    return noon.astimezone(ZoneInfo(calendar.timezone)).date()


def _text(instant: datetime | None) -> str | None:
    return None if instant is None else instant_text(instant_ms(instant))
