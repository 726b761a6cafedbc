"""Moves a user from one stretch on a tier to the next, or prolongs the one that runs.

The caller has locked the user's row, and changes `users.tier` in the same transaction.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import TYPE_CHECKING, Literal
from uuid import uuid4
from zoneinfo import ZoneInfo

from models import Subscription, SubscriptionEvent
from quota.errors import InvalidValueError
from quota.period import Calendar, window_at
from quota.values import exact_decimal, instant_ms, instant_of, parse_instant
from service.instants import check_instant
from service.subscriptions import first_subscription, running_subscription

if TYPE_CHECKING:
    from sqlmodel.ext.asyncio.session import AsyncSession

    from models import User

__all__ = ["NEVER", "Until", "change_stretch", "parse_revenue", "parse_until"]

NEVER: Literal["never"] = "never"
# The last day of a stretch in the user's calendar, the instant of its end, or that it has none.
Until = date | datetime | Literal["never"]

_REVENUE_MAX = Decimal("99999999.99")  # numeric(10, 2), as seed 002 has it
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_NOON = time(12)
_NOT_COUNTED = datetime(1970, 1, 1, tzinfo=UTC)  # by user_lifetime_stats, as it is now


def parse_until(value: str) -> Until:
    """`never`, a date or an instant.

    Raises:
        InvalidValueError
    """
    if value == NEVER:
        return NEVER
    try:
        if _DATE.fullmatch(value):
            return date.fromisoformat(value)
        return parse_instant(value, field="until")
    except ValueError:  # InvalidValueError is one of them, and names instants only
        expected = "a last day such as '2026-12-31', an instant with its offset, or 'never'"
        raise InvalidValueError("until", value, expected) from None


def parse_revenue(value: object) -> Decimal:
    """An amount of money, with two places at most.

    Raises:
        InvalidValueError
    """
    exact = exact_decimal(value, whole_max=8, places_max=2)
    if exact is None:
        expected = f"a decimal from 0 to {_REVENUE_MAX} with at most 2 places"
        raise InvalidValueError("revenue", value, expected)
    return exact


async def change_stretch(
    session: AsyncSession,
    user: User,
    *,
    tier_before: str,
    default_tier: str,
    tier: str | None,
    until: Until | None,
    revenue: Decimal | None,
    at: datetime,
) -> None:
    """Put *user* on *tier* at *at*, until then; None leaves the tier, the end or the revenue as it is.

    Another tier ends the stretch that runs and begins the next. The same tier with another end prolongs it (or
    makes it shorter), and *revenue* is then that of one more term; with the end that it has, *revenue* is that of
    the running term, so that what is said twice counts once. A stretch that is over but still runs, because nobody has
    looked yet, is prolonged by a new end, and ended by its tier alone, as if somebody had.

    Raises:
        InvalidValueError: the end is not in the future, or is one of the default tier, or all the revenue of a
            stretch is too much.
    """
    change = _Change(user, default_tier, at)
    ends_at = change.ends_at(until)
    if ends_at is not None and (tier or user.tier) == default_tier:
        expected = f"none, because the default tier {default_tier!r} has no end"
        raise InvalidValueError("until", str(until), expected)
    running = await running_subscription(session, user)
    on = tier_before if running is None else running.tier
    is_over = running is not None and running.ends_at is not None and running.ends_at <= at
    if tier is not None and ((tier, tier) != (on, tier_before) or (is_over and until is None)):
        begins_at = await change.end(session, running, tier_before=tier_before, next_tier=tier)
        session.add(
            Subscription(
                user_id=user.id,
                id=uuid4(),
                tier=tier,
                started_at=begins_at,
                ends_at=ends_at,
                revenue=revenue or Decimal(0),
                term_revenue=revenue or Decimal(0),
            )
        )
    elif until is not None or revenue is not None:
        running = running or first_subscription(user, tier=on)
        _prolong(running, ends_at if until is not None else running.ends_at, revenue)
        session.add(running)


def _prolong(running: Subscription, ends_at: datetime | None, revenue: Decimal | None) -> None:
    """Let the stretch end then; *revenue* is that of the term up to there."""
    is_renewal = ends_at != running.ends_at
    earlier = running.revenue if is_renewal else running.revenue - running.term_revenue
    term = (Decimal(0) if is_renewal else running.term_revenue) if revenue is None else revenue
    if earlier + term > _REVENUE_MAX:
        expected = f"at most {_REVENUE_MAX - earlier}, as {earlier} came in before"
        raise InvalidValueError("revenue", str(revenue), expected)
    running.ends_at = ends_at
    running.revenue = earlier + term
    running.term_revenue = term
    running.counted_at = _NOT_COUNTED


@dataclass(frozen=True, slots=True)
class _Change:
    """A change of *user* at *at*."""

    user: User
    default_tier: str
    at: datetime

    def ends_at(self, until: Until | None) -> datetime | None:
        """The instant at which a stretch ends that lasts *until*; that of a date is when the next day begins."""
        if until is None or until == NEVER:
            return None
        if isinstance(until, datetime):
            ends_at = check_instant(until, field="until")
        else:
            check_instant(datetime.combine(until, _NOON, tzinfo=UTC), field="until")
            noon = datetime.combine(until, _NOON, tzinfo=ZoneInfo(self.user.timezone))
            day = window_at("day", instant_ms(noon), Calendar(self.user.timezone))
            assert day.end_ms is not None
            ends_at = instant_of(day.end_ms)
        if ends_at <= self.at:
            raise InvalidValueError("until", str(until), "a day or an instant that is not over")
        return ends_at

    async def end(
        self,
        session: AsyncSession,
        running: Subscription | None,
        *,
        tier_before: str,
        next_tier: str,
    ) -> datetime:
        """End the stretch that runs, and note how for billing; return when the next one begins.

        A user without a row was on its tier since it was made; if that is now, there is nothing to end.
        """
        if running is None:
            if self.user.created_at >= self.at:
                return self.at
            running = first_subscription(self.user, tier=tier_before)
        running.status = self._how(running, next_tier)
        running.ended_at = max(self.at, running.started_at)  # clocks of tests may be set back
        session.add(running)
        session.add(
            SubscriptionEvent(
                user_id=self.user.id,
                subscription_id=running.id,
                kind=running.status,
                tier=running.tier,
                next_tier=next_tier,
                at=running.ended_at,
            )
        )
        await session.flush()  # before the next one: two may not run, not even for a moment
        return running.ended_at

    def _how(self, running: Subscription, next_tier: str) -> str:
        if running.ends_at is not None and running.ends_at <= self.at:
            return "expired"
        return "canceled" if next_tier == self.default_tier else "ended"
