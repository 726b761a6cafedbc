"""A grant on its way through time: what of it changes, and when it does so by itself."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from quota.period import renewal_at

if TYPE_CHECKING:
    from quota.burndown import Change, Grant

__all__ = ["NEVER", "Pot"]

NEVER = 2**63


class Pot:
    """A grant, and what of it changes."""

    __slots__ = (
        "amount",
        "changed_at_ms",
        "changes",
        "ends_at_ms",
        "every",
        "grant",
        "left",
        "overused",
        "renewed_at_ms",
    )

    def __init__(self, grant: Grant) -> None:
        self.grant = grant
        self.left = grant.left
        self.amount = grant.amount
        self.overused = grant.overused
        self.every = grant.every
        self.changes = grant.changes_to
        self.changed_at_ms = grant.changed_at_ms
        ends_at_ms = grant.ends_at_ms
        self.ends_at_ms = NEVER if ends_at_ms is None else ends_at_ms
        start_ms = grant.renewed_at_ms
        self.renewed_at_ms = grant.effective_at_ms if start_ms is None else start_ms

    @property
    def anchor_ms(self) -> int:
        """What its recurrences are counted from."""
        anchor_ms = self.grant.anchor_ms
        return self.grant.effective_at_ms if anchor_ms is None else anchor_ms

    def active(self, at_ms: int) -> bool:
        """Whether it can pay at *at_ms*."""
        return self.grant.effective_at_ms <= at_ms < self.ends_at_ms

    def next_ms(self, at_ms: int) -> int:
        """The next instant after *at_ms* at which it begins, is set back, changes or ends."""
        if at_ms >= self.ends_at_ms or self.grant.effective_at_ms >= self.ends_at_ms:
            return NEVER
        if at_ms < self.grant.effective_at_ms:
            return self.grant.effective_at_ms
        next_ms = self.ends_at_ms
        for change in self.changes:
            if change.at_ms > at_ms:
                next_ms = min(next_ms, change.at_ms)
                break
        if self.every is not None:
            end_ms = renewal_at(self.every, self.anchor_ms, at_ms).end_ms
            assert end_ms is not None
            next_ms = min(next_ms, end_ms)
        return next_ms

    def due_ms(self, at_ms: int) -> int | None:
        """The start of the recurrence that runs at *at_ms*, if the grant was not set back for it yet.

        One that began before the last change of the grant does not count: what was used stays used.
        """
        if self.every is None or at_ms < self.grant.effective_at_ms:
            return None
        start_ms = renewal_at(self.every, self.anchor_ms, at_ms).start_ms
        if start_ms <= self.renewed_at_ms:
            return None
        changed_at_ms = self.changed_at_ms
        return None if changed_at_ms is not None and start_ms <= changed_at_ms else start_ms

    def take(self, change: Change) -> int:
        """Become of another amount; return what is left. More was used where that is nothing: `overused`."""
        left = change.amount - (self.amount - self.left) - self.overused
        self.overused = max(0, -left)
        self.amount, self.every, self.changed_at_ms = change.amount, change.every, change.at_ms
        return max(0, left)

    def current(self) -> Grant:
        """The grant as it is now; the same one where nothing has changed."""
        grant = self.grant
        voided_at_ms = grant.voided_at_ms
        if self.ends_at_ms not in (NEVER, grant.ends_at_ms):
            voided_at_ms = self.ends_at_ms
        if (self.left, self.amount, self.overused, self.every, self.changes, voided_at_ms) == (
            grant.left,
            grant.amount,
            grant.overused,
            grant.every,
            grant.changes_to,
            grant.voided_at_ms,
        ) and self.renewed_at_ms == (grant.renewed_at_ms or grant.effective_at_ms):
            return grant
        return replace(
            grant,
            left=self.left,
            amount=self.amount,
            overused=self.overused,
            every=self.every,
            changes_to=self.changes,
            changed_at_ms=self.changed_at_ms,
            voided_at_ms=voided_at_ms,
            renewed_at_ms=self.renewed_at_ms,
        )
