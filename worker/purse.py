"""A user's account while a run is folded: every movement becomes an entry, and at the end what changed, a row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quota.account import Account
from quota.allowance import allowance_grant, allowance_id
from quota.wire import mark_of
from service.usage_ids import uuid7_from
from worker.counts import instant_at

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from uuid import UUID

    from quota.account import Move, Payment, Payments
    from quota.burndown import Grant
    from service.usage_log import Line
    from worker.batch import Batch, Member

__all__ = ["ENTRY_COLUMNS", "Purse", "Purses"]

# Of credit_entries: who paid for what; no grant means overage.
ENTRY_COLUMNS = ("user_id", "id", "place", "grant_id", "kind", "amount_micro", "created_at")
# What comes back of a hold was never an entry: it had no usage yet.
_UNWRITTEN = "returned"


class Purses:
    """The purses of a run's users, each opened when it is first asked for."""

    __slots__ = ("_batch", "_members", "opened")

    def __init__(self, batch: Batch, members: Mapping[UUID, Member]) -> None:
        self._batch = batch
        self._members = members
        self.opened: dict[UUID, Purse] = {}

    def of(self, user_id: UUID, at_ms: int) -> Purse:
        """The user's purse; *at_ms* is the instant of what is asked of it."""
        purse = self.opened.get(user_id)
        if purse is None:
            purse = Purse(self._batch, user_id, self._members[user_id], at_ms)
            self.opened[user_id] = purse
        return purse

    def close(self) -> dict[UUID, Account]:
        """Write down what has changed in each; return the accounts that still have holds."""
        for user_id, purse in self.opened.items():
            purse.close(self._members[user_id])
        return {
            user_id: purse.account for user_id, purse in self.opened.items() if purse.account.holds
        }


class Purse:
    """The grants, holds and overage of a user from *at_ms* on, when the run first asks for them."""

    __slots__ = ("_allowance", "_batch", "_grants", "_overage_at_ms", "_user_id", "account")

    def __init__(self, batch: Batch, user_id: UUID, member: Member, at_ms: int) -> None:
        self._batch = batch
        self._user_id = user_id
        self._grants, self._allowance = _grants_of(user_id, member, at_ms)
        self._overage_at_ms = member.overage_at_ms
        fresh = self._allowance
        holds = member.holds
        self.account = Account(
            self._grants if fresh is None else [*self._grants, fresh],
            member.overage,
            at_ms=member.overage_at_ms,
            holds={key: hold.payments for key, hold in holds.items() if hold.cost}
            if holds
            else None,
        )

    def pay(self, line: Line, usage_id: Any, cost: int, at_ms: int) -> None:
        """Pay for a usage."""
        account, before = self.account, self.account.overage
        moves = account.advance(at_ms)
        if moves:
            self._write_moves(moves, line, "p")
        payments, rest = account.charge(cost, at_ms=at_ms)
        if rest:
            payments.append((None, rest))
        self._write_burns(payments, usage_id, at_ms)
        if rest or account.overage != before:
            self._overage_at_ms = at_ms

    def hold(self, line: Line, cost: int, *, at_ms: int) -> None:
        """Take *cost* for the hold that the line reserves."""
        account, before = self.account, self.account.overage
        self._write_moves(account.advance(at_ms), line, "h")
        account.hold(line.key, cost, at_ms=at_ms)
        if account.overage != before:
            self._overage_at_ms = at_ms

    def settle(self, line: Line, usage_id: Any, kept: int, *, at_ms: int) -> list[Payment]:
        """End the hold of the line, of which *kept* stays paid; return what it had taken."""
        account, before = self.account, self.account.overage
        moves = account.advance(at_ms)
        payments = account.holds[line.key]
        stays, settled = account.settle(line.key, kept)
        self._write_burns(stays, usage_id, at_ms)
        self._write_moves([*moves, *settled], line, "s")
        if account.overage != before:
            self._overage_at_ms = at_ms
        return payments

    def close(self, member: Member) -> None:
        """Add what has changed since the run began to the rows of the batch."""
        batch, user_id, account = self._batch, self._user_id, self.account
        if account.overage != member.overage or self._overage_at_ms != member.overage_at_ms:
            at = instant_at(self._overage_at_ms)
            batch.overages.append((user_id, account.overage, at))
        recurs = False
        for grant in self._grants:
            if grant.every is not None:
                recurs = True
            elif (left := account.left_of(grant.id)) != grant.left:
                batch.grants_left.append((user_id, grant.id, left))
        if recurs or self._allowance is not None:
            self._close_recurring({grant.id: grant for grant in account.grants()})

    def _close_recurring(self, now: Mapping[UUID, Grant]) -> None:
        batch, user_id = self._batch, self._user_id
        for grant in self._grants:
            found = now[grant.id]
            if grant.every is not None and _shape(found) != _shape(grant):
                batch.grants_renewed.append((user_id, grant.id, found.left, *_shape(found)))
            elif grant.every is not None and found.left != grant.left:
                batch.grants_left.append((user_id, grant.id, found.left))
        first = self._allowance
        if first is not None and first.effective_at_ms <= self.account.at_ms:
            self._add_allowance(first, now[first.id])

    def _add_allowance(self, first: Grant, now: Grant) -> None:
        """An allowance gets its row when it first may pay; what it has by then moved are entries already."""
        effective_at = instant_at(first.effective_at_ms)
        _, every, renewed_at, overused, changed_at = _shape(now)
        times = (effective_at, instant_at(first.created_at_ms), renewed_at)
        row = (now.id, now.amount, now.left, *times, every, overused, changed_at)
        self._batch.allowances.append((self._user_id, *row))
        if first.amount:
            mark = mark_of(self._user_id, f"{first.id}\0granted")
            entry_id = uuid7_from(mark, first.effective_at_ms)
            granted = (entry_id, 0, first.id, "granted", first.amount, effective_at)
            self._batch.entries.append((self._user_id, *granted))

    def _write_burns(self, payments: Payments, usage_id: Any, at_ms: int) -> None:
        at, entries, user_id = instant_at(at_ms), self._batch.entries, self._user_id
        for place, (grant_id, paid) in enumerate(payments):
            entries.append((user_id, usage_id, place, grant_id, "burn", paid, at))

    def _write_moves(self, moves: Iterable[Move], line: Line, step: str) -> None:
        """The ids are made from the line that was the first to see the moves, and so the same each time."""
        op = line.code.op if line.code else line.number
        for place, move in enumerate(moves):
            if move.kind == _UNWRITTEN:
                continue
            mark = mark_of(self._user_id, f"{line.key}\0{op}\0{step}{place}")
            entry_id, at = uuid7_from(mark, move.at_ms), instant_at(move.at_ms)
            row = (entry_id, 0, move.grant_id, move.kind, move.amount, at)
            self._batch.entries.append((self._user_id, *row))


def _grants_of(user_id: UUID, member: Member, at_ms: int) -> tuple[Sequence[Grant], Grant | None]:
    """The grants as the rules have them, and the tier's allowance where it has no row yet."""
    if not member.allowances:
        for grant in member.grants:  # by hand: this is asked of everybody who pays
            if grant.every is not None:
                break
        else:
            return member.grants, None
    id_ = allowance_id(user_id)
    stored = next((grant for grant in member.grants if grant.id == id_), None)
    allowance = allowance_grant(
        user_id,
        member.allowances,
        stored,
        anchor_ms=member.calendar.anchor_ms,
        at_ms=at_ms,
    )
    if allowance is None:
        return member.grants, None
    others = [grant for grant in member.grants if grant.id != id_]
    if stored is not None:
        return [*others, allowance], None
    return others, allowance


def _shape(grant: Grant) -> tuple[int, str | None, Any, int, Any]:
    """What of a recurring grant changes besides what is left.

    Amount, how often, since when, use beyond it, when it changed.
    """
    renewed_ms = grant.renewed_at_ms
    since = instant_at(grant.effective_at_ms if renewed_ms is None else renewed_ms)
    changed_ms = grant.changed_at_ms
    changed_at = None if changed_ms is None else instant_at(changed_ms)
    return grant.amount, grant.every, since, grant.overused, changed_at
