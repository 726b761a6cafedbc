"""What a user has left: credits, grants in burn order, every limit, open holds."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from quota.decision import HARD, LimitState, remaining_of
from quota.period import window_at
from quota.rolling import account_at, counters_without, held_of
from quota.rules import ANY_FEATURE
from quota.standing import Profile, read_counters
from quota.values import credits_of, instant_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from decimal import Decimal

    from quota.account import Account
    from quota.burndown import Grant
    from quota.decision import Limit
    from quota.held import Held
    from quota.period import Calendar
    from quota.rules import Rules

__all__ = ["UNREADABLE", "Balance", "Seen", "balance_of", "is_readable", "seen_of"]

# What a hash or a profile that nobody of ours wrote makes the readers stumble over.
UNREADABLE = (ArithmeticError, AssertionError, LookupError, TypeError, ValueError, struct.error)


@dataclass(frozen=True, slots=True)
class Balance:
    """A user's standing at one instant; *limits* is keyed `feature/period`, *holds* are the open ones.

    Nothing is left of a grant that is over.
    """

    tier: str
    credits_micro: int
    overage_micro: int
    grants: tuple[Grant, ...]
    limits: Mapping[str, LimitState]
    at_ms: int
    holds: Mapping[str, Held] = field(default_factory=dict)

    @property
    def credits(self) -> Decimal:
        """Credits that can be spent now."""
        return credits_of(self.credits_micro)

    @property
    def overage(self) -> Decimal:
        """Credits burnt that no grant has paid."""
        return credits_of(self.overage_micro)

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON values: decimals as strings, instants in RFC 3339."""
        return {
            "tier": self.tier,
            "credits": format(self.credits, "f"),
            "overage": format(self.overage, "f"),
            "grants": {
                grant.name or str(grant.id): format(credits_of(grant.left), "f")
                for grant in self.grants
            },
            "limits": {
                name: {
                    "used": state.used,
                    "max": state.limit,
                    "mode": state.mode,
                    "remaining": state.remaining,
                    "resets_at": None
                    if state.resets_at_ms is None
                    else instant_text(state.resets_at_ms),
                }
                for name, state in self.limits.items()
            },
            "holds": {
                key: {
                    "feature": held.feature,
                    "amount": held.amount,
                    "expires_at": instant_text(held.expires_at_ms),
                }
                for key, held in self.holds.items()
            },
        }


@dataclass(frozen=True, slots=True)
class Seen:
    """What a reply of read.lua tells of a user at one instant, holds that are over by then ended."""

    tier: str
    calendar: Calendar
    account: Account
    holds: Sequence[Held]
    counters: Mapping[str, bytes]  # by feature
    at_ms: int

    def grants(self) -> list[Grant]:
        """The grants in burn order; of one that is over nothing is left."""
        return [
            replace(grant, left=0)
            if grant.left and grant.ends_at_ms is not None and grant.ends_at_ms <= self.at_ms
            else grant
            for grant in self.account.grants()
        ]

    def state_of(self, feature: str, limit: Limit) -> LimitState:
        """*limit* on *feature*, and what is used of it in the period that runs."""
        used = {
            per: (end_ms, units)
            for per, end_ms, units in read_counters(self.counters.get(feature, b"|"))
        }
        return _limit_state(limit, used, calendar=self.calendar, at_ms=self.at_ms)


def seen_of(stored: Sequence[Any], *, at_ms: int) -> Seen:
    """A reply of read.lua, moved to *at_ms* by the pure rules."""
    fields = dict(zip(stored[3::2], stored[4::2], strict=True))
    profile = Profile.load(stored[2])
    holds = held_of(fields)
    ended = [held for held in holds if held.expires_at_ms <= at_ms]
    return Seen(
        fields[b"h"].decode().split(",", 3)[2],
        profile.calendar,
        account_at(fields, profile, at_ms=at_ms),
        holds[len(ended) :],
        {
            name[2:].decode(): line
            for name, line in {**fields, **counters_without(fields, ended)}.items()
            if name.startswith(b"f:")
        },
        at_ms,
    )


def is_readable(stored: Sequence[Any]) -> bool:
    """Whether a reply of read.lua can be read; one of another version or another hand can not."""
    if not Profile.readable(stored[2]):
        return False
    try:
        seen = seen_of(stored, at_ms=stored[0])
        for line in seen.counters.values():
            read_counters(line)
    except UNREADABLE:
        return False
    return True


def balance_of(stored: Sequence[Any], rules: Rules, *, at_ms: int) -> Balance:
    """The balance that a reply of read.lua tells, moved to *at_ms* by the pure rules."""
    seen = seen_of(stored, at_ms=at_ms)
    return Balance(
        seen.tier,
        max(0, seen.account.net(at_ms=at_ms)),
        seen.account.overage,
        tuple(seen.grants()),
        _limit_states(seen, rules),
        at_ms,
        {held.key: held for held in seen.holds},
    )


def _limit_states(seen: Seen, rules: Rules) -> dict[str, LimitState]:
    tier = rules.tiers.get(seen.tier)
    named = [name for name in (tier.limits if tier else ()) if name != ANY_FEATURE]
    states: dict[str, LimitState] = {}
    for feature in [*named, *(name for name in seen.counters if name not in named)]:
        for limit in (tier.limits_of(feature) if tier else None) or ():
            name = f"{feature}/{limit.per}"
            # Of two on one period, the one that denies.
            if limit.mode == HARD or name not in states:
                states[name] = seen.state_of(feature, limit)
    return states


def _limit_state(
    limit: Limit, counters: Mapping[str, tuple[int, int]], *, calendar: Calendar, at_ms: int
) -> LimitState:
    end_ms, used = counters.get(limit.per, (-1, 0))
    if end_ms and end_ms <= at_ms:
        used = 0  # the period that was counted is over
        windowed = limit.per.startswith("window:")  # and this one opens at its first use
        end_ms = 0 if windowed else window_at(limit.per, at_ms, calendar).end_ms or 0
    return LimitState(
        limit.per, limit.mode, used, limit.max, remaining_of(limit.max, used=used), end_ms or None
    )
