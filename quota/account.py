"""A user's grants and overage, moved through time: who pays, what is left, until when that is true.

The same steps run where a cold user is loaded, where a client rolls credits over an activation or
an expiry, and where the worker writes down which grant paid. Overage is paid first by the next
grant that becomes active (DESIGN 5), so time is walked from one activation to the next.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from quota.burndown import Grant, burn_order, valid_until_ms

if TYPE_CHECKING:
    from collections.abc import Iterable
    from uuid import UUID

__all__ = ["Account"]


class Account:
    """Grants in burn order, what is left of each, and overage; all in micro-credits.

    *at_ms* is when *overage* was made: what began and ended before does not repay it. Instants passed
    in must not go back: what has been paid stays paid.
    """

    def __init__(self, grants: Iterable[Grant], overage: int = 0, *, at_ms: int = 0) -> None:
        self._grants = burn_order(grants)
        self._left = {grant.id: grant.left for grant in self._grants}
        self.overage = overage
        self._at_ms = at_ms

    def charge(self, cost: int, *, at_ms: int) -> tuple[list[tuple[UUID, int]], int]:
        """Pay *cost* at *at_ms*; return what each grant paid, in order, and the rest as overage."""
        payments, rest = self._pay(cost, at_ms)
        self.overage += rest
        return payments, rest

    def repay(self, *, at_ms: int) -> list[tuple[UUID, int]]:
        """Let the grants that became active up to *at_ms* pay the overage; return who paid."""
        payments: list[tuple[UUID, int]] = []
        if self.overage:
            steps = {
                grant.effective_at_ms
                for grant in self._grants
                if self._at_ms < grant.effective_at_ms < at_ms
            }
            for step_ms in sorted(steps | {at_ms}):
                paid, self.overage = self._pay(self.overage, step_ms)
                payments += paid
                if not self.overage:
                    break
        self._at_ms = max(self._at_ms, at_ms)
        return payments

    def net(self, *, at_ms: int) -> int:
        """Micro-credits that can be spent at *at_ms*, less overage; negative while there is overage."""
        return (
            sum(self._left[grant.id] for grant in self._grants if grant.active(at_ms))
            - self.overage
        )

    def valid_until_ms(self, *, at_ms: int) -> int | None:
        """The next instant at which `net` may change by itself, if any."""
        return valid_until_ms(self.grants(), at_ms=at_ms)

    def left_of(self, grant_id: UUID) -> int:
        """Micro-credits left of a grant, whether it is active or not."""
        return self._left[grant_id]

    def grants(self) -> list[Grant]:
        """The grants in burn order, with what is left of each now."""
        return [
            grant
            if grant.left == self._left[grant.id]
            else replace(grant, left=self._left[grant.id])
            for grant in self._grants
        ]

    def _pay(self, cost: int, at_ms: int) -> tuple[list[tuple[UUID, int]], int]:
        payments: list[tuple[UUID, int]] = []
        for grant in self._grants:
            if not cost:
                break
            left = self._left[grant.id]
            if left and grant.active(at_ms):
                paid = min(cost, left)
                self._left[grant.id] = left - paid
                payments.append((grant.id, paid))
                cost -= paid
        return payments, cost
