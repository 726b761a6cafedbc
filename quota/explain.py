"""Why one more unit would be allowed or not: every limit, every grant, and Redis beside PostgreSQL.

Redis is what decides, so the explanation is made of what Redis has. What PostgreSQL and the log come
to is put beside it where a worker could say so; what differs is drift.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from quota.balance import seen_of
from quota.decision import (
    FEATURE_NOT_IN_TIER,
    INSUFFICIENT_CREDITS,
    Decision,
    LimitState,
    Standing,
    decide,
)
from quota.period import renewal_at
from quota.prices import Price, cost_of
from quota.values import credits_of, instant_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from quota.account import Account
    from quota.burndown import Grant
    from quota.decision import Limit
    from quota.rules import Rules, Tier

__all__ = ["Compared", "Entry", "Explanation", "GrantState", "View", "explained", "explanation_of"]

CREDITS = "credits"


class View(Protocol):
    """What an explanation is made of, which `quota.balance.Seen` has; it is not changed."""

    @property
    def tier(self) -> str: ...
    @property
    def account(self) -> Account: ...
    @property
    def at_ms(self) -> int: ...
    def grants(self) -> Sequence[Grant]:
        """The grants in burn order; of one that is over nothing is left."""

    def state_of(self, feature: str, limit: Limit) -> LimitState:
        """*limit* on *feature*, and what is used of it in the period that runs."""


class GrantState(NamedTuple):
    """A grant, when it is set back next, and why it can not pay now (None: it can)."""

    grant: Grant
    renews_at_ms: int | None
    reason: str | None

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        grant = self.grant
        return {
            "id": grant.name or str(grant.id),
            "kind": grant.kind,
            "priority": grant.priority,
            "amount": _credits(grant.amount),
            "left": _credits(grant.left),
            "effective_at": _instant(grant.effective_at_ms),
            "expires_at": _instant(grant.expires_at_ms),
            "renews_at": _instant(self.renews_at_ms),
            **({"reason": self.reason} if self.reason else {}),
        }


class Entry(NamedTuple):
    """A movement of credits as PostgreSQL has it; no *grant* is overage."""

    kind: str
    grant: str | None
    amount_micro: int
    at_ms: int

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {
            "kind": self.kind,
            "grant": self.grant,
            "amount": _credits(self.amount_micro),
            "at": _instant(self.at_ms),
        }


class Compared(NamedTuple):
    """A number in Redis, and what PostgreSQL and the log come to: units, or micro-credits for `credits`."""

    name: str
    cached: int
    stored: int

    @property
    def drift(self) -> int:
        """Redis minus PostgreSQL and log."""
        return self.cached - self.stored

    def as_dict(self) -> dict[str, Any]:
        """The numbers as JSON values; credits are decimals."""
        numbers = {"cached": self.cached, "stored": self.stored, "drift": self.drift}
        if self.name != CREDITS:
            return numbers
        return {name: _credits(micro) for name, micro in numbers.items()}


@dataclass(frozen=True, slots=True)
class Explanation:
    """How a decision about one unit of *feature* comes about at one instant.

    *binds* is the limit that stops the unit, or would be the first to: a period, `credits`, or None.
    *payers* are the grants that can pay, in burn order; *others* can not. *entries* (the last ones)
    and *compared* are None where nobody could say what PostgreSQL has.
    """

    user_tier: str
    feature: str
    decision: Decision
    binds: str | None
    price: Price | None
    credits_micro: int
    overage_micro: int
    held_micro: int
    payers: tuple[GrantState, ...]
    others: tuple[GrantState, ...]
    entries: tuple[Entry, ...] | None
    compared: tuple[Compared, ...] | None
    at_ms: int

    @property
    def limits(self) -> tuple[LimitState, ...]:
        """Every limit that applies, with its headroom as `remaining`."""
        return self.decision.limits

    @property
    def drifts(self) -> bool:
        """Whether Redis and PostgreSQL with the log differ."""
        return any(one.drift for one in self.compared or ())

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON values: decimals as strings, instants in RFC 3339."""
        decision = self.decision
        return {
            "feature": self.feature,
            "tier": self.user_tier,
            "at": _instant(self.at_ms),
            "decision": {
                "allowed": decision.allowed,
                "code": decision.code,
                "binds": self.binds,
                "cost": _credits(decision.cost_micro),
                "retry_after": decision.retry_after,
            },
            "limits": [_limit_dict(state) for state in self.limits],
            "price": None if self.price is None else _price_dict(self.price),
            "credits": _credits(self.credits_micro),
            "overage": _credits(self.overage_micro),
            "held": _credits(self.held_micro),
            "grants": [one.as_dict() for one in self.payers],
            "grants_not_paying": [one.as_dict() for one in self.others],
            "entries": None if self.entries is None else [one.as_dict() for one in self.entries],
            "compared": None
            if self.compared is None
            else {one.name: one.as_dict() for one in self.compared},
        }


def explanation_of(
    stored_reply: Sequence[Any],
    rules: Rules,
    stored: Mapping[str, Any] | None,
    feature: str,
    *,
    at_ms: int,
) -> Explanation:
    """Explain one unit of *feature* to a user.

    *stored_reply* is that of read.lua; *stored* what `service.explain.stored_standing` answers: None
    where nobody answered.
    """
    return explained(seen_of(stored_reply, at_ms=at_ms), rules, stored, feature)


def explained(
    seen: View, rules: Rules, stored: Mapping[str, Any] | None, feature: str
) -> Explanation:
    """As `explanation_of`, of a user that was seen already."""
    tier, at_ms = rules.tiers.get(seen.tier), seen.at_ms
    price = rules.price_of(seen.tier, feature)
    decision = _decision(seen, tier, price, feature)
    states = [_grant_state(grant, at_ms) for grant in seen.grants()]
    return Explanation(
        seen.tier,
        feature,
        decision,
        _binds(decision),
        price,
        max(0, decision.credits_micro),
        seen.account.overage,
        sum(one.amount for payments in seen.account.holds.values() for one in payments),
        tuple(one for one in states if one.reason is None),
        tuple(one for one in states if one.reason is not None),
        None if stored is None else tuple(Entry(**entry) for entry in stored["entries"]),
        None if stored is None else tuple(_compared(decision, stored, feature)),
        at_ms,
    )


def _decision(seen: View, tier: Tier | None, price: Price | None, feature: str) -> Decision:
    cost = cost_of(price, amount=1, format=None, quality=None)
    net = seen.account.net(at_ms=seen.at_ms)
    limits = tier.limits_of(feature) if tier else None
    if tier is None or limits is None:
        return Decision(False, FEATURE_NOT_IN_TIER, feature, 1, cost, net, (), seen.at_ms, "")
    states = tuple(seen.state_of(feature, limit) for limit in limits)
    return decide(
        Standing(states, net, tier.overdraft),
        feature=feature,
        amount=1,
        cost=cost,
        key="",
        now_ms=seen.at_ms,
        take=False,
    )


def _binds(decision: Decision) -> str | None:
    if decision.code == INSUFFICIENT_CREDITS:
        return CREDITS
    headline = decision.headline
    return None if headline is None or headline.limit is None else headline.per


def _grant_state(grant: Grant, at_ms: int) -> GrantState:
    ends_at_ms = grant.ends_at_ms
    over = ends_at_ms is not None and ends_at_ms <= at_ms
    renews_at_ms = None
    if grant.every is not None and not over and grant.effective_at_ms <= at_ms:
        anchor_ms = grant.effective_at_ms if grant.anchor_ms is None else grant.anchor_ms
        renews_at_ms = renewal_at(grant.every, anchor_ms, at_ms).end_ms
        if renews_at_ms is not None and ends_at_ms is not None and ends_at_ms <= renews_at_ms:
            renews_at_ms = None
    return GrantState(grant, renews_at_ms, _why_not(grant, at_ms, over=over))


def _why_not(grant: Grant, at_ms: int, *, over: bool) -> str | None:
    if over:
        return "voided" if grant.voided_at_ms == grant.ends_at_ms else "expired"
    if grant.effective_at_ms > at_ms:
        return "not yet effective"
    return None if grant.left else "empty"


def _compared(decision: Decision, stored: Mapping[str, Any], feature: str) -> Iterator[Compared]:
    for per, used in {state.per: state.used for state in decision.limits}.items():
        yield Compared(f"{feature}/{per}", used, stored["used"].get(per, 0))
    yield Compared(CREDITS, decision.credits_micro, stored["credits_micro"])


def _limit_dict(state: LimitState) -> dict[str, Any]:
    fields = state.as_dict()
    return {
        "period": state.per,
        "mode": state.mode,
        "used": state.used,
        "max": state.limit,
        "headroom": state.remaining,
        "resets_at": fields["resets_at"],
    }


def _price_dict(price: Price) -> dict[str, Any]:
    return {
        "base": format(price.base, "f"),
        "format": {name: format(value, "f") for name, value in price.formats.items()},
        "quality": {name: format(value, "f") for name, value in price.qualities.items()},
    }


def _credits(micro: int) -> str:
    return format(credits_of(micro), "f")


def _instant(ms: int | None) -> str | None:
    return None if ms is None else instant_text(ms)
