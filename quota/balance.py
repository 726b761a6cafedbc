"""What a user has left: credits, grants in burn order, every limit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quota.decision import HARD, LimitState, remaining_of
from quota.period import window_at
from quota.rules import ANY_FEATURE
from quota.standing import Profile, read_counters
from quota.values import credits_of, instant_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from decimal import Decimal

    from quota.burndown import Grant
    from quota.decision import Limit
    from quota.period import Calendar
    from quota.rules import Rules

__all__ = ["Balance", "balance_of"]


@dataclass(frozen=True, slots=True)
class Balance:
    """A user's standing at one instant; *limits* is keyed `feature/period`."""

    tier: str
    credits_micro: int
    overage_micro: int
    grants: tuple[Grant, ...]
    limits: Mapping[str, LimitState]
    at_ms: int

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
        }


def balance_of(stored: Sequence[Any], rules: Rules, *, at_ms: int) -> Balance:
    """The balance that a reply of read.lua tells, moved to *at_ms* by the pure rules."""
    fields = dict(zip(stored[3::2], stored[4::2], strict=True))
    tier = fields[b"h"].decode().split(",", 2)[2]
    profile = Profile.load(stored[2])
    account = profile.account(int(fields[b"c"]))
    account.repay(at_ms=at_ms)
    net = account.net(at_ms=at_ms)
    limits = _limit_states(fields, rules, tier, calendar=profile.calendar, at_ms=at_ms)
    return Balance(tier, max(0, net), account.overage, tuple(account.grants()), limits, at_ms)


def _limit_states(
    fields: Mapping[bytes, bytes], rules: Rules, tier: str, *, calendar: Calendar, at_ms: int
) -> dict[str, LimitState]:
    used = {name[2:].decode(): line for name, line in fields.items() if name.startswith(b"f:")}
    named = rules.tiers[tier].limits if tier in rules.tiers else {}
    states = {}
    for feature in [
        *(name for name in named if name != ANY_FEATURE),
        *(name for name in used if name not in named),
    ]:
        counters = {
            per: (end_ms, units) for per, end_ms, units in read_counters(used.get(feature, b"|"))
        }
        for limit in rules.tiers[tier].limits_of(feature) or () if tier in rules.tiers else ():
            name = f"{feature}/{limit.per}"
            if (
                limit.mode == HARD or name not in states
            ):  # of two on one period, the one that denies
                states[name] = _limit_state(limit, counters, calendar=calendar, at_ms=at_ms)
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
