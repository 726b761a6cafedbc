"""A user of `quota.testing` as it is seen at one instant: by a balance, and by who asks why."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from quota.balance import Balance
from quota.decision import HARD
from quota.held import Held
from quota.rules import ANY_FEATURE
from quota.testing.given import OPEN

if TYPE_CHECKING:
    from collections.abc import Iterator

    from quota.account import Account
    from quota.burndown import Grant
    from quota.decision import Limit, LimitState
    from quota.testing.member import Member

__all__ = ["Seen"]


@dataclass(frozen=True, slots=True)
class Seen:
    """A member that was moved to *at_ms*; nothing of it changes by being seen."""

    member: Member
    at_ms: int

    @property
    def tier(self) -> str:
        """The name of the user's tier."""
        return self.member.tier

    @property
    def account(self) -> Account:
        """The user's credits."""
        return self.member.account

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
        counters, calendar = self.member.counters, self.member.calendar
        window = counters.window(feature, limit.per, self.at_ms, calendar)
        state = counters.state(feature, limit, window)
        if counters.is_open(feature, limit.per, self.at_ms):
            return state
        return state._replace(resets_at_ms=None)  # nobody has opened it: it does not run yet

    def balance(self) -> Balance:
        """Credits, grants in burn order, every limit, open holds."""
        return Balance(
            self.tier,
            max(0, self.account.net(at_ms=self.at_ms)),
            self.account.overage,
            tuple(self.grants()),
            self._limits(),
            self.at_ms,
            {held.key: held for held in self._holds()},
        )

    def _limits(self) -> dict[str, LimitState]:
        tier = self.member.tier_rules
        named = [name for name in (tier.limits if tier else ()) if name != ANY_FEATURE]
        used = sorted(self.member.counters.features.difference(named))
        states: dict[str, LimitState] = {}
        for feature in [*named, *used]:
            for limit in (tier.limits_of(feature) if tier else None) or ():
                name = f"{feature}/{limit.per}"
                # Of two on one period, the one that denies.
                if limit.mode == HARD or name not in states:
                    states[name] = self.state_of(feature, limit)
        return states

    def _holds(self) -> Iterator[Held]:
        for key, given in self.member.answers.items():
            hold = given.hold
            if hold is not None and hold.status == OPEN:
                use = given.uses[0]
                yield Held(
                    key,
                    use.feature,
                    use.amount,
                    use.cost,
                    hold.price,
                    hold.expires_at_ms,
                    hold.ends,
                )
