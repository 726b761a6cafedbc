"""A tier's credits: a recurring grant that arrives by itself, on the user's anchor.

It has a row like any grant from the first time that it pays. A change of the tier's allowance keeps
what was used: of 100 with 80 used, an allowance of 1000 leaves 920.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import UUID, uuid5

from quota.burndown import Grant
from quota.period import renewal_at

if TYPE_CHECKING:
    from quota.rules import Tier

__all__ = ["ALLOWANCE_NAME", "allowance_grant", "allowance_id"]

ALLOWANCE_NAME = "allowance"


def allowance_id(user_id: UUID) -> UUID:
    """The id of the grant that stands for the allowance of a user's tier, whatever the tier."""
    return uuid5(user_id, ALLOWANCE_NAME)


def allowance_grant(
    user_id: UUID,
    tier: Tier | None,
    stored: Grant | None,
    *,
    anchor_ms: int,
    changed_at_ms: int,
    at_ms: int,
) -> Grant | None:
    """The allowance as the rules have it: *stored*, moved to the tier's, or a fresh one; None for neither.

    *changed_at_ms* is when the rules came into force: what was used before is of the old allowance.
    """
    allowance = tier.allowance if tier is not None else None
    if stored is None:
        if allowance is None:
            return None
        start_ms = renewal_at(allowance.every, anchor_ms, at_ms).start_ms
        return Grant(
            id=allowance_id(user_id),
            amount=allowance.amount,
            left=allowance.amount,
            effective_at_ms=start_ms,
            created_at_ms=anchor_ms,  # the same whenever it is made: it decides who pays first
            renewed_at_ms=start_ms,
            every=allowance.every,
            anchor_ms=anchor_ms,
            name=ALLOWANCE_NAME,
        )
    assert stored.every is not None
    amount, every = (0, stored.every) if allowance is None else (allowance.amount, allowance.every)
    change = None
    if (amount, every) != (stored.amount, stored.every):
        change = (max(changed_at_ms, stored.effective_at_ms), amount, every)
    return replace(stored, name=ALLOWANCE_NAME, anchor_ms=anchor_ms, changes_to=change)
