"""Grants of credits, and the order in which they pay.

The rule of DESIGN 5 ("Credits"): priority, then the earliest expiry, then the kind, then
the oldest. Expiring credits go before lasting ones, and gifts before what was bought.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable
    from uuid import UUID

__all__ = ["KINDS", "Change", "Grant", "burn_order"]

KINDS = ("promo", "granted", "purchased")
_RANK = {kind: rank for rank, kind in enumerate(KINDS)}


class Change(NamedTuple):
    """From then on a grant is of another amount, and recurs as often; what was used stays used."""

    at_ms: int
    amount: int
    every: str


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
    overused: int = 0  # used in this recurrence beyond an amount that became smaller
    changed_at_ms: int | None = None  # when it took the last of its changes
    changes_to: tuple[Change, ...] = ()  # those to come, first to last

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
