"""The rule by which usage is admitted, and the answer it gives.

The admit script is this rule made atomic; one property test holds the two together.
Change both or neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from quota.values import AMOUNT_MAX, MICRO_MAX, credits_of, instant_of, instant_text

if TYPE_CHECKING:
    from datetime import datetime
    from decimal import Decimal

__all__ = [
    "CODES_ALLOWED",
    "CODES_DENIED",
    "FEATURE_NOT_IN_TIER",
    "HARD",
    "INSUFFICIENT_CREDITS",
    "LIMIT_EXCEEDED",
    "OK",
    "SOFT",
    "SOFT_LIMIT",
    "UNAVAILABLE",
    "UNKNOWN_USER",
    "Decision",
    "Limit",
    "LimitState",
    "LocalDecision",
    "Standing",
    "decide",
    "remaining_of",
]

OK = "ok"
SOFT_LIMIT = "soft_limit"
LIMIT_EXCEEDED = "limit_exceeded"
INSUFFICIENT_CREDITS = "insufficient_credits"
FEATURE_NOT_IN_TIER = "feature_not_in_tier"
UNKNOWN_USER = "unknown_user"
UNAVAILABLE = "unavailable"

CODES_ALLOWED = (OK, SOFT_LIMIT)
CODES_DENIED = (
    LIMIT_EXCEEDED,
    INSUFFICIENT_CREDITS,
    FEATURE_NOT_IN_TIER,
    UNKNOWN_USER,
    UNAVAILABLE,
)

HARD = "hard"
SOFT = "soft"


class Limit(NamedTuple):
    """A bound on a feature per period; *max* None means unlimited."""

    per: str
    mode: str
    max: int | None


class LimitState(NamedTuple):
    """A limit and how much of it is used; None where there is no bound or no reset."""

    per: str
    mode: str
    used: int
    limit: int | None
    remaining: int | None
    resets_at_ms: int | None

    @property
    def resets_at(self) -> datetime | None:
        """When the running period ends."""
        return None if self.resets_at_ms is None else instant_of(self.resets_at_ms)

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON values, under the names of the wire."""
        return {
            "period": self.per,
            "mode": self.mode,
            "used": self.used,
            "limit": self.limit,
            "remaining": self.remaining,
            "resets_at": None if self.resets_at_ms is None else instant_text(self.resets_at_ms),
        }


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a user stands before a record: every limit, and net micro-credits.

    Credits below zero are overage that no grant has paid yet.
    """

    limits: tuple[LimitState, ...]
    credits: int
    overdraft: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer to one record; true when it was allowed.

    Made for every call, so it holds plain integers; decimals and instants are made on reading.
    """

    allowed: bool
    code: str
    feature: str
    amount: int
    cost_micro: int
    credits_micro: int
    limits: tuple[LimitState, ...]
    now_ms: int
    key: str
    replayed: bool = False
    # Whether it was made without Redis. Of the class, because a field would cost every call.
    local: ClassVar[bool] = False

    def __bool__(self) -> bool:
        return self.allowed

    @property
    def cost(self) -> Decimal:
        """Credits that the record costs."""
        return credits_of(self.cost_micro)

    @property
    def credits(self) -> Decimal:
        """Credits left; zero while there is overage."""
        return credits_of(max(0, self.credits_micro))

    @property
    def headline(self) -> LimitState | None:
        """The limit with the least remaining; of those that deny, when a limit denied."""
        limits = self._denying() or self.limits
        return min(limits, key=_remaining, default=None)

    @property
    def used(self) -> int | None:
        """Units used of the headline limit."""
        headline = self.headline
        return None if headline is None else headline.used

    @property
    def limit(self) -> int | None:
        """The bound of the headline limit."""
        headline = self.headline
        return None if headline is None else headline.limit

    @property
    def remaining(self) -> int | None:
        """Units left of the headline limit."""
        headline = self.headline
        return None if headline is None else headline.remaining

    @property
    def resets_at(self) -> datetime | None:
        """When the headline limit's running period ends."""
        headline = self.headline
        return None if headline is None else headline.resets_at

    @property
    def retry_after(self) -> int | None:
        """Whole seconds after which the same call can pass the limits, if waiting helps."""
        wait_ms = 0
        for state in self._denying():
            assert state.limit is not None
            if state.resets_at_ms is None or self.amount > state.limit:
                return None
            wait_ms = max(wait_ms, state.resets_at_ms - self.now_ms, 1)
        return -(-wait_ms // 1000) or None

    def as_dict(self) -> dict[str, Any]:
        """Every public field as a JSON value: decimals as strings, instants in RFC 3339."""
        headline = self.headline
        return {
            "allowed": self.allowed,
            "code": self.code,
            "feature": self.feature,
            "amount": self.amount,
            "cost": format(self.cost, "f"),
            "used": None if headline is None else headline.used,
            "limit": None if headline is None else headline.limit,
            "remaining": None if headline is None else headline.remaining,
            "resets_at": None if headline is None else headline.as_dict()["resets_at"],
            "retry_after": self.retry_after,
            "credits": format(self.credits, "f"),
            "replayed": self.replayed,
            "local": self.local,
            "key": self.key,
            "limits": [state.as_dict() for state in self.limits],
        }

    def _denying(self) -> list[LimitState]:
        """The hard limits without room for the amount, when that is what denied it."""
        if self.code != LIMIT_EXCEEDED:
            return []
        return [state for state in self.limits if _denies(state, self.amount)]


@dataclass(frozen=True, slots=True)
class LocalDecision(Decision):
    """An answer while Redis could not be reached: nothing is known of limits, cost and credits."""

    local: ClassVar[bool] = True


def decide(
    standing: Standing,
    *,
    feature: str,
    amount: int,
    cost: int,
    key: str,
    now_ms: int,
    take: bool = True,
    forced: bool = False,
) -> Decision:
    """Take *amount* units for *cost* micro-credits, all or nothing.

    Limits are tested first, so a caller told ``INSUFFICIENT_CREDITS`` knows that buying
    credits would be enough. ``take=False`` only asks; *forced* records what has already
    happened, and is refused only where a count would pass what a counter can hold.
    An allowed take answers with the standing after it, anything else with the one before.
    """
    assert 0 < amount <= AMOUNT_MAX
    assert 0 <= cost <= MICRO_MAX
    code = _code(standing, amount=amount, cost=cost, forced=forced)
    allowed = code in CODES_ALLOWED
    limits, credits_micro = standing.limits, standing.credits
    if allowed and take:
        limits = tuple(_taken(state, amount) for state in limits)
        credits_micro -= cost
    return Decision(allowed, code, feature, amount, cost, credits_micro, limits, now_ms, key)


def _code(standing: Standing, *, amount: int, cost: int, forced: bool) -> str:
    passes_soft = False
    for state in standing.limits:
        if state.used + amount > AMOUNT_MAX or (not forced and _denies(state, amount)):
            return LIMIT_EXCEEDED
        if state.mode == SOFT and state.limit is not None and state.used + amount > state.limit:
            passes_soft = True
    left = standing.credits - cost
    if cost > 0 and left < 0 and (left < -MICRO_MAX or not (forced or standing.overdraft)):
        return INSUFFICIENT_CREDITS
    return SOFT_LIMIT if passes_soft else OK


def _denies(state: LimitState, amount: int) -> bool:
    return state.mode == HARD and state.limit is not None and state.used + amount > state.limit


def _taken(state: LimitState, amount: int) -> LimitState:
    per, mode, used, limit, _, resets_at_ms = state
    used += amount
    return LimitState(per, mode, used, limit, remaining_of(limit, used=used), resets_at_ms)


def remaining_of(limit: int | None, *, used: int) -> int | None:
    """Units left of *limit*, never below zero; None when it is unlimited."""
    return None if limit is None else max(0, limit - used)


def _remaining(state: LimitState) -> float:
    return float("inf") if state.remaining is None else state.remaining
