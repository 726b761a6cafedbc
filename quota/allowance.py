"""A tier's credits: a recurring grant that arrives by itself, on the user's anchor.

It has a row like any grant from the first time that it pays. A change of the tier's allowance keeps
what was used: of 100 with 80 used, an allowance of 1000 leaves 920. It counts from an instant on that
all who charge go by, so what they come to does not depend on when they hear of the change.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import UUID, uuid5

from quota.burndown import Change, Grant
from quota.period import renewal_at

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from quota.rules import Allowance, AllowanceChanges

__all__ = [
    "ALLOWANCE_NAME",
    "COUNTS_AFTER_MS",
    "allowance_changes",
    "allowance_grant",
    "allowance_id",
    "moved_allowance",
]

ALLOWANCE_NAME = "allowance"
# After rules were applied: by then every shard has them (DESIGN 1). Until then some decide by the old ones and
# some by the new, and whoever charges for what they admitted can not tell which.
COUNTS_AFTER_MS = 2_000


def allowance_id(user_id: UUID) -> UUID:
    """The id of the grant that stands for the allowance of a user's tier, whatever the tier."""
    return uuid5(user_id, ALLOWANCE_NAME)


def allowance_changes(
    versions: Iterable[tuple[int, str, Allowance | None]],
) -> Mapping[str, AllowanceChanges]:
    """By tier, what was its allowance from which instant on; left out are tiers that never had one.

    *versions*: when each was applied in ms, the tier and its allowance, in the order of the versions.
    """
    found: dict[str, list[tuple[int, Allowance | None]]] = {}
    for applied_at_ms, tier, allowance in versions:
        changes, at_ms = found.setdefault(tier, []), applied_at_ms + COUNTS_AFTER_MS
        while changes and changes[-1][0] >= at_ms:
            changes.pop()  # the clock was set back in between: the later version counts
        if not changes or changes[-1][1] != allowance:
            changes.append((at_ms, allowance))
    return {
        # Nobody was on a tier before its first version.
        tier: ((0, changes[0][1]), *changes[1:])
        for tier, changes in found.items()
        if any(allowance for _, allowance in changes)
    }


def allowance_grant(
    user_id: UUID,
    changes: AllowanceChanges,
    stored: Grant | None,
    *,
    anchor_ms: int,
    at_ms: int,
) -> Grant | None:
    """The allowance of a tier with these *changes*: *stored* with those that it did not take yet, or a fresh one.

    A fresh one is as at *at_ms*, with those that come later. None: there is neither row nor allowance.
    """
    if stored is None:
        return _fresh(user_id, changes, anchor_ms=anchor_ms, at_ms=at_ms)
    assert stored.every is not None
    taken_ms = stored.changed_at_ms or 0
    later = _grant_changes(
        [change for change in changes if change[0] > taken_ms], stored.every, stored.effective_at_ms
    )
    if not later:
        later = _last_change(changes, stored, taken_ms)
    return replace(stored, name=ALLOWANCE_NAME, anchor_ms=anchor_ms, changes_to=later)


def moved_allowance(
    changes: AllowanceChanges, there: Grant, *, anchor_ms: int, at_ms: int
) -> Grant:
    """The allowance *there* once its user is on a tier with these *changes*, or on another anchor, from *at_ms* on.

    An anchor that moves changes when the next renewal comes; it is no renewal itself.
    """
    assert there.every is not None
    place = _place_at(changes, at_ms)
    allowance = changes[place][1] if changes else None
    later = [(at_ms, allowance), *changes[place + 1 :]]
    found = _grant_changes(later, there.every, there.effective_at_ms)
    if found[0][1:] == (there.amount, there.every):
        found = found[1:]
    return replace(there, anchor_ms=anchor_ms, changed_at_ms=at_ms, changes_to=found)


def _fresh(user_id: UUID, changes: AllowanceChanges, *, anchor_ms: int, at_ms: int) -> Grant | None:
    """An allowance of which nothing was used; one that comes with a change begins with it, whenever it is made."""
    place = _place_at(changes, at_ms)
    while place < len(changes) and not changes[place][1]:
        place += 1  # there is none yet
    if place >= len(changes):
        return None
    since_ms, allowance = changes[place]
    assert allowance is not None
    first = place
    while first and changes[first - 1][1]:
        first -= 1
    start_ms = renewal_at(allowance.every, anchor_ms, max(at_ms, since_ms)).start_ms
    start_ms = max(start_ms, changes[first][0])
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
        changed_at_ms=since_ms or None,
        changes_to=_grant_changes(changes[place + 1 :], allowance.every, start_ms),
    )


def _place_at(changes: AllowanceChanges, at_ms: int) -> int:
    """Which of the changes is in force at *at_ms*; the first is from the beginning of time."""
    return max(0, sum(since_ms <= at_ms for since_ms, _ in changes) - 1)


def _grant_changes(
    changes: Iterable[tuple[int, Allowance | None]], every: str, from_ms: int
) -> tuple[Change, ...]:
    """The changes as a grant has them; without an allowance it is of nothing, and recurs as it did."""
    found = []
    for at_ms, allowance in changes:
        every = allowance.every if allowance else every
        found.append(Change(max(at_ms, from_ms), allowance.amount if allowance else 0, every))
    return tuple(found)


def _last_change(changes: AllowanceChanges, stored: Grant, taken_ms: int) -> tuple[Change, ...]:
    """The change to the allowance in force, where *stored* took one that counts later: a clock was set back."""
    assert stored.every is not None
    at_ms, allowance = changes[-1] if changes else (0, None)
    from_ms = max(taken_ms, stored.effective_at_ms)
    (change,) = _grant_changes([(at_ms, allowance)], stored.every, from_ms)
    return () if change[1:] == (stored.amount, stored.every) else (change,)
