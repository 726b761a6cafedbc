"""Reserves and the ends of holds, in the order of the log: units, credits, and the row of each hold."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from uuid import UUID

from quota.wire import mark_of
from service.usage_ids import uuid7_from
from service.usage_log import COMMIT, EXPIRE, RELEASE
from worker.counts import count_held, count_windows, instant_at, starts_at

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from quota.account import Account, Payment
    from service.usage_log import Line
    from worker.batch import Batch, Member
    from worker.purse import Purses

__all__ = ["COMMITTED", "EXPIRED", "OPEN", "RELEASED", "Hold", "Holding"]

OPEN, COMMITTED, RELEASED, EXPIRED = "open", "committed", "released", "expired"
_ENDS = {COMMIT: COMMITTED, RELEASE: RELEASED, EXPIRE: EXPIRED}


@dataclass(slots=True)
class Hold:
    """A row of `holds`; *line* is the reserve as it was logged."""

    user_id: UUID
    key: str
    id: UUID | str
    feature: str
    amount: int
    cost: int
    price: str
    line: Line
    payments: Sequence[Payment]
    windows: Sequence[tuple[int, int]]
    reserved_ms: int
    expires_ms: int
    status: str = OPEN
    committed_amount: int | None = None
    committed_micro: int | None = None
    ended_ms: int | None = None


@dataclass(slots=True)
class Holding:
    """The holds of a run: those that it makes, and those that were open before."""

    batch: Batch
    members: Mapping[UUID, Member]
    purses: Purses
    row: Callable[..., tuple[Any, ...]]  # a row of usage_logs, see `worker.batch`
    _made: dict[tuple[UUID, str], Hold] = field(default_factory=dict)
    _changed: dict[tuple[UUID, str], Hold] = field(default_factory=dict)

    def reserve(self, user_id: UUID, line: Line, usage_id: Any, cost: int, at_ms: int) -> None:
        """Set aside the units and the cost of the line."""
        assert line.code is not None
        windows = line.windows or []
        self._made[user_id, line.key] = Hold(
            user_id,
            line.key,
            usage_id,
            line.feature,
            line.amount,
            cost,
            line.code.price,
            line,
            [],
            windows,
            at_ms,
            line.code.at_ms,
        )
        if cost:
            self.purses.of(user_id, at_ms).hold(line, cost, at_ms=at_ms)
        starts = starts_at(self.members[user_id].calendar, at_ms)
        count_held(self.batch.usage, (user_id, line.feature), line.amount, starts)
        count_windows(self.batch.windows, user_id, line.feature, windows, line.amount)

    def end(self, user_id: UUID, line: Line, cost: int, at_ms: int) -> bool:
        """End the hold of the line; False: it is not open."""
        hold = self._open_hold(user_id, line.key)
        if hold is None:
            return False
        assert line.code is not None
        op = line.code.op
        ended_ms = line.code.at_ms if op == EXPIRE else at_ms
        amount, cost = (line.amount, cost) if op == COMMIT else (0, 0)
        units, kept = min(amount, hold.amount), min(cost, hold.cost)
        if hold.cost:
            purse = self.purses.of(user_id, ended_ms)
            hold.payments = purse.settle(line, hold.id, kept, at_ms=ended_ms)
        hold.status, hold.ended_ms = _ENDS[op], ended_ms
        if op == COMMIT:
            hold.committed_amount, hold.committed_micro = amount, cost
        self._count_kept(hold, units, kept)
        if amount > units or cost > kept:
            self._surplus(hold, line, amount - units, cost - kept, at_ms)
        return True

    def close(self, accounts: Mapping[UUID, Account]) -> None:
        """Add the rows of the holds that were made, and of those that are not as they were.

        Who has paid for a hold that is still open may have changed: a grant that repays its overage.
        """
        for user_id, account in accounts.items():
            for key, payments in account.holds.items():
                hold = self._made.get((user_id, key))
                if hold is not None:
                    hold.payments = payments
                elif payments != self.members[user_id].holds[key].payments:
                    self._changed[user_id, key] = replace(
                        self.members[user_id].holds[key], payments=payments
                    )
        self.batch.holds_made += self._made.values()
        self.batch.holds_changed += self._changed.values()

    def _open_hold(self, user_id: UUID, key: str) -> Hold | None:
        hold = self._made.get((user_id, key)) or self._changed.get((user_id, key))
        if hold is None and key in (before := self.members[user_id].holds):
            hold = self._changed[user_id, key] = replace(before[key])
        return hold if hold is not None and hold.status == OPEN else None

    def _count_kept(self, hold: Hold, units: int, kept: int) -> None:
        """Log and count what stays of a hold, at the instant of its reserve; the rest of its units goes back."""
        back = units - hold.amount
        starts = starts_at(self.members[hold.user_id].calendar, hold.reserved_ms)
        used = None
        if units or kept:
            at = instant_at(hold.reserved_ms)
            row = self.row(hold.id, hold.user_id, hold.line, units, kept, at)
            self.batch.logs.append(row)
            self.batch.elsewhen.append(row)
            used = (units, at, _metadata(hold.line))
        count_held(self.batch.usage, (hold.user_id, hold.feature), back, starts, used=used)
        if back:
            count_windows(self.batch.windows, hold.user_id, hold.feature, hold.windows, back)

    def _surplus(self, hold: Hold, line: Line, units: int, cost: int, at_ms: int) -> None:
        """What was committed past the hold: used at the instant of the commit, as a second line."""
        user_id, at = hold.user_id, instant_at(at_ms)
        usage_id = uuid7_from(mark_of(user_id, f"{hold.key}\0{1}"), at_ms)
        row = self.row(usage_id, user_id, hold.line, units, cost, at, number=1)
        self.batch.logs.append(row)
        starts = starts_at(self.members[user_id].calendar, at_ms)
        used = (units, at, _metadata(hold.line))
        # Here `count_held` counts them and takes them as used at once.
        count_held(self.batch.usage, (user_id, hold.feature), units, starts, used=used)
        count_windows(self.batch.windows, user_id, hold.feature, line.windows or (), units)
        if cost:
            self.purses.of(user_id, at_ms).pay(line, usage_id, cost, at_ms)


def _metadata(line: Line) -> str | None:
    text = bytes(line.metadata)
    return None if text == b"null" else text.decode()
