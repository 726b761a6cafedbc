"""Which grants pay for a cost, in which order, and how much no grant pays.

The rule of DESIGN 5 ("Credits"): priority, then the earliest expiry, then the kind, then
the oldest. Expiring credits go before lasting ones, and gifts before what was bought.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from uuid import UUID

__all__ = ["KINDS", "Grant", "burn", "burn_order", "spendable", "valid_until_ms"]

KINDS = ("promo", "granted", "purchased")
_RANK = {kind: rank for rank, kind in enumerate(KINDS)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """An amount of credits with a priority and a stretch of time, in micro-credits."""

    id: UUID
    amount: int
    left: int
    priority: int = 1
    kind: str = "granted"
    effective_at_ms: int
    expires_at_ms: int | None = None
    voided_at_ms: int | None = None
    created_at_ms: int
    name: str | None = None
    # What is left at a reset becomes at most `max_rollover` and at least `min_rollover`.
    min_rollover: int = 0
    max_rollover: int = 0
    # A recurring grant is set back to its amount each day, week or month, counted from its anchor.
    every: str | None = None
    anchor_ms: int | None = None  # none: effective_at_ms
    renewed_at_ms: int | None = None  # when the recurrence began that `left` belongs to
    # (at_ms, amount, every): from then on it is of another amount; what was used stays used.
    changes_to: tuple[int, int, str] | None = None

    @property
    def ends_at_ms(self) -> int | None:
        """When the grant expires or is voided, whichever is first."""
        if self.expires_at_ms is None or self.voided_at_ms is None:
            return self.voided_at_ms if self.expires_at_ms is None else self.expires_at_ms
        return min(self.expires_at_ms, self.voided_at_ms)

    def active(self, at_ms: int) -> bool:
        """Whether it can pay at *at_ms*: effective, not expired, not voided."""
        ends_at_ms = self.ends_at_ms
        return self.effective_at_ms <= at_ms and (ends_at_ms is None or at_ms < ends_at_ms)


def burn_order(grants: Iterable[Grant]) -> list[Grant]:
    """*grants* as they are burnt; total, because the last criterion is the id."""
    return sorted(grants, key=_burn_key)


def _burn_key(grant: Grant) -> tuple[int, bool, int, int, int, UUID]:
    return (
        grant.priority,
        grant.expires_at_ms is None,
        grant.expires_at_ms or 0,
        _RANK[grant.kind],
        grant.created_at_ms,
        grant.id,
    )


def spendable(grants: Iterable[Grant], *, at_ms: int) -> int:
    """Micro-credits left of what is active at *at_ms*."""
    return sum(grant.left for grant in grants if grant.active(at_ms))


def valid_until_ms(grants: Iterable[Grant], *, at_ms: int) -> int | None:
    """The next instant after *at_ms* at which `spendable` may change by itself, if any.

    Until then a stored sum stays right without looking at the grants again.
    """
    changes = (_next_change_ms(grant, at_ms) for grant in grants if grant.left > 0)
    return min((change for change in changes if change is not None), default=None)


def _next_change_ms(grant: Grant, at_ms: int) -> int | None:
    ends_at_ms = grant.ends_at_ms
    if ends_at_ms is not None and ends_at_ms <= max(at_ms, grant.effective_at_ms):
        return None  # over, or ends before it begins
    return grant.effective_at_ms if grant.effective_at_ms > at_ms else ends_at_ms


def burn(grants: Iterable[Grant], cost: int, *, at_ms: int) -> tuple[list[tuple[UUID, int]], int]:
    """Pay *cost* from the active grants; return what each pays, in order, and the overage.

    The grants stay as they are: writing the payments down is the caller's transaction.
    """
    assert cost >= 0
    payments: list[tuple[UUID, int]] = []
    for grant in burn_order(grant for grant in grants if grant.left > 0 and grant.active(at_ms)):
        if cost == 0:
            break
        paid = min(cost, grant.left)
        payments.append((grant.id, paid))
        cost -= paid
    return payments, cost
