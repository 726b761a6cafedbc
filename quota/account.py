"""A user's grants, holds and overage, moved through time: who pays, what is left, until when that is true.

The same steps run where a cold user is loaded, where a client rolls credits over an instant, and
where the worker writes down which grant paid. What happens by itself (a grant becomes active, is set
back to its amount, gets another amount) is never written by a timer: `Account.advance` walks over it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from quota.burndown import burn_order
from quota.payments import BEYOND, GONE, RETURNS, Payment, payment_rows, payments_of, turned
from quota.pot import NEVER, Pot

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from uuid import UUID

    from quota.burndown import Grant
    from quota.payments import Kind

__all__ = ["Account", "Move", "Payment", "Payments", "payment_rows", "payments_of"]


class Move(NamedTuple):
    """Credits that moved by themselves or came back; *amount* in micro-credits, above 0.

    Kinds: `repaid` a grant paid overage, `renewed` a grant got more, `lapsed` it got less,
    `forgiven` overage was dropped, `returned` what was paid came back. No grant means overage.
    """

    kind: str
    grant_id: UUID | None
    amount: int
    at_ms: int


Payments = list[tuple["UUID | None", int]]


class Account:
    """Grants in burn order, what is left of each, holds, and overage; all in micro-credits.

    *at_ms* is when *overage* was made: what began and ended before does not repay it. Time does not
    go back: what has been paid stays paid, and an earlier instant counts as the latest one seen.
    """

    def __init__(
        self,
        grants: Iterable[Grant],
        overage: int = 0,
        *,
        at_ms: int = 0,
        holds: Mapping[str, Iterable[Payment]] | None = None,
    ) -> None:
        self._pots = [Pot(grant) for grant in burn_order(grants)]
        self._by_id = {pot.grant.id: pot for pot in self._pots}
        self.overage = overage
        self.at_ms = at_ms
        self.holds = {key: list(payments) for key, payments in (holds or {}).items()}
        self._active: list[Pot] = []  # those that can pay, in burn order, until _quiet_until_ms
        self._quiet_until_ms = 0

    def advance(self, at_ms: int) -> list[Move]:
        """Walk to *at_ms* over whatever happens by itself up to then, and say what moved.

        Overage is paid by the next grant that becomes active or is set back, so while there is any,
        each such instant is a step; without it, they are taken at once.
        """
        if at_ms < self._quiet_until_ms and not self.overage:
            self.at_ms = max(self.at_ms, at_ms)
            return []
        at_ms = max(self.at_ms, at_ms)
        moves: list[Move] = []
        if self.overage and not self._quiet_until_ms:
            # The first step: what was given at the very instant of the overage pays, and may be over by *at_ms*.
            self._stand_at(self.at_ms, moves)
        while self.overage:
            step_ms = min((pot.next_ms(self.at_ms) for pot in self._pots), default=NEVER)
            if step_ms >= at_ms:
                break
            self._stand_at(step_ms, moves)
        self._stand_at(at_ms, moves)
        return moves

    def charge(self, cost: int, *, at_ms: int) -> tuple[Payments, int]:
        """Pay *cost* at *at_ms*; return what each grant paid, in order, and the rest as overage.

        What happens by itself up to then is taken first; call `advance` before to learn of it.
        """
        if self.overage or at_ms >= self._quiet_until_ms:
            self.advance(at_ms)
        payments, rest = self._pay(cost)
        self.overage += rest
        return payments, rest

    def hold(self, key: str, cost: int, *, at_ms: int) -> None:
        """Take *cost* as a charge would, and remember who paid until the hold ends."""
        payments, rest = self.charge(cost, at_ms=at_ms)
        held = [Payment(grant_id, paid) for grant_id, paid in payments]
        self.holds[key] = [*held, Payment(None, rest)] if rest else held

    def settle(self, key: str, kept: int) -> tuple[Payments, list[Move]]:
        """End a hold: *kept* of its cost stays paid, first taken first; the rest goes back, last first.

        What comes back to a grant that is over by now, or was set back since, has lapsed. So has what
        only makes up for use beyond a smaller amount.
        """
        payments = self.holds.pop(key)
        stays: Payments = []
        back: list[Payment] = []
        for one in payments:
            part = min(kept, one.amount)
            kept -= part
            if part:
                stays.append((one.grant_id, part))
            if part < one.amount:
                back.append(one._replace(amount=one.amount - part))
        moves: list[Move] = []
        for one in reversed(back):
            returned = self._return(one.grant_id, one.amount) if one.returns else 0
            if one.beyond:
                self._make_up(one.grant_id, one.amount)
            if returned:
                moves.append(Move("returned", one.grant_id, returned, self.at_ms))
            if returned < one.amount:
                moves.append(Move("lapsed", one.grant_id, one.amount - returned, self.at_ms))
        self._repay(moves)
        return stays, moves

    def give_back(self, payments: Payments, amount: int, *, paid_at_ms: int) -> list[Move]:
        """Give *amount* of *payments* back, last first; nothing to a grant that is over or was set back since.

        A recurring grant takes back no more than its amount. No grant means overage, as far as
        there is still some. What holds may give back keeps its room in both.
        """
        moves: list[Move] = []
        for grant_id, paid in reversed(payments):
            part = min(amount, paid)
            amount -= part
            if self._set_back_since(grant_id, paid_at_ms):
                continue
            part -= self._make_up(grant_id, part)
            returned = self._return(grant_id, min(part, self._room_of(grant_id)))
            if returned:
                moves.append(Move("returned", grant_id, returned, self.at_ms))
        self._repay(moves)
        return moves

    def void(self, grant_id: UUID, *, at_ms: int) -> int:
        """End a grant at *at_ms*; return what was left of it, 0 if it was over already."""
        self.advance(at_ms)
        pot = self._by_id[grant_id]
        if pot.ends_at_ms <= self.at_ms:
            return 0
        voided, pot.left, pot.ends_at_ms = pot.left, 0, self.at_ms
        self._stand_at(self.at_ms, [])
        return voided

    def reset(self, *, at_ms: int, preserve_overage: bool) -> list[Move]:
        """Let each active grant roll over within its bounds; grants that begin at *at_ms* count whole.

        Holds do not carry past those bounds what they give back later. Overage is dropped, or burns from
        what rolled over where it is preserved.
        """
        moves = self.advance(at_ms - 1) if self.at_ms < at_ms else []
        self.at_ms = at_ms = max(self.at_ms, at_ms)
        # What began at this very instant is not asked: it joins after what rolled has paid.
        self._active = [
            pot for pot in self._pots if pot.grant.effective_at_ms < at_ms and pot.active(at_ms)
        ]
        for pot in self._active:
            left = min(pot.grant.max_rollover, max(pot.grant.min_rollover, pot.left))
            self._set_left(pot, left, at_ms, moves)
            self._bound_holds(pot.grant.id, pot.grant.max_rollover - left)
        if self.overage and not preserve_overage:
            moves.append(Move("forgiven", None, self.overage, at_ms))
            self.overage = 0
            self._forget_overage_of_holds()
        self._repay(moves)
        self._quiet_until_ms = 0
        return moves + self.advance(at_ms)

    def net(self, *, at_ms: int) -> int:
        """Micro-credits that can be spent at *at_ms*, less overage; negative while there is overage."""
        return sum(pot.left for pot in self._pots if pot.active(at_ms)) - self.overage

    def valid_until_ms(self, *, at_ms: int) -> int | None:
        """The next instant at which `net`, or what may come back of a hold, can change by itself."""
        paying = {one.grant_id for payments in self.holds.values() for one in payments}
        changes = (
            pot.next_ms(at_ms)
            for pot in self._pots
            if pot.left or pot.every or pot.changes or pot.grant.id in paying
        )
        first_ms = min(changes, default=NEVER)
        return None if first_ms == NEVER else first_ms

    def returnable(self, key: str) -> list[tuple[int, bool]]:
        """What each payer of a hold paid, and whether it would come back now."""
        return [
            (one.amount, one.returns and (one.grant_id is None or self._open(one.grant_id)))
            for one in self.holds[key]
        ]

    def renewals(self) -> dict[UUID, int]:
        """When each recurring grant was set back last; what it paid before does not come back."""
        return {pot.grant.id: pot.renewed_at_ms for pot in self._pots if pot.every is not None}

    def left_of(self, grant_id: UUID) -> int:
        """Micro-credits left of a grant, whether it is active or not."""
        return self._by_id[grant_id].left

    def grants(self) -> list[Grant]:
        """The grants in burn order, as they are now."""
        return [pot.current() for pot in self._pots]

    def _open(self, grant_id: UUID) -> bool:
        pot = self._by_id.get(grant_id)
        return pot is not None and self.at_ms < pot.ends_at_ms

    def _stand_at(self, at_ms: int, moves: list[Move]) -> None:
        """Take everything that happened up to *at_ms*, and let what is active pay overage."""
        self.at_ms = at_ms
        for pot in self._pots:
            if pot.every is not None or pot.changes:
                self._catch_up(pot, moves)
        self._active = [pot for pot in self._pots if pot.active(at_ms)]
        self._quiet_until_ms = min((pot.next_ms(at_ms) for pot in self._pots), default=NEVER)
        self._repay(moves)

    def _catch_up(self, pot: Pot, moves: list[Move]) -> None:
        last_ms = min(self.at_ms, pot.ends_at_ms - 1)
        if last_ms < pot.grant.effective_at_ms:
            return
        while pot.changes and pot.changes[0].at_ms <= last_ms:
            change, *later = pot.changes
            self._renew(pot, change.at_ms, moves)
            before, left = pot.overused, pot.take(change)
            pot.changes = tuple(later)
            if pot.overused > before:
                self._turn(pot.grant.id, pot.overused - before, of=RETURNS, to=BEYOND)
            else:
                self._unbind(pot)
            self._set_left(pot, left, change.at_ms, moves)
        self._renew(pot, last_ms, moves)

    def _renew(self, pot: Pot, at_ms: int, moves: list[Move]) -> None:
        start_ms = pot.due_ms(at_ms)
        if start_ms is None:
            return
        pot.renewed_at_ms, pot.overused = start_ms, 0
        self._set_left(pot, pot.amount, start_ms, moves)
        self._bound_holds(pot.grant.id, 0)

    def _set_left(self, pot: Pot, left: int, at_ms: int, moves: list[Move]) -> None:
        if left > pot.left:
            moves.append(Move("renewed", pot.grant.id, left - pot.left, at_ms))
        elif left < pot.left:
            moves.append(Move("lapsed", pot.grant.id, pot.left - left, at_ms))
        pot.left = left

    def _pay(self, cost: int) -> tuple[Payments, int]:
        payments: Payments = []
        for pot in self._active:
            if not cost:
                break
            if pot.left:
                paid = min(cost, pot.left)
                pot.left -= paid
                payments.append((pot.grant.id, paid))
                cost -= paid
        return payments, cost

    def _repay(self, moves: list[Move]) -> None:
        """Let what is active pay overage: that of usage first, then that of holds, whose payer it becomes."""
        if not self.overage:
            return
        payments, rest = self._pay(self.overage)
        burnt = max(0, self.overage - self._held_of(None))
        self.overage = rest
        for grant_id, paid in payments:
            part = min(paid, burnt)
            burnt -= part
            if part:
                moves.append(Move("repaid", grant_id, part, self.at_ms))
            if part < paid:
                self._take_over(grant_id, paid - part)

    def _take_over(self, grant_id: UUID | None, amount: int) -> None:
        for key in sorted(self.holds):  # whoever read them, and in whatever order
            taken: list[Payment] = []
            for one in self.holds[key]:
                part = min(amount, one.amount) if one.grant_id is None and one.returns else 0
                amount -= part
                if part:
                    taken.append(Payment(grant_id, part))
                if part < one.amount:
                    taken.append(one._replace(amount=one.amount - part))
            self.holds[key] = taken

    def _turn(self, grant_id: UUID | None, amount: int, *, of: Kind, to: Kind) -> None:
        """Let so much of what holds took of a grant be of another kind."""
        for key in sorted(self.holds):  # whoever read them, and in whatever order
            if amount <= 0:
                break
            self.holds[key], amount = turned(self.holds[key], grant_id, amount, of=of, to=to)

    def _bound_holds(self, grant_id: UUID, room: int) -> None:
        """Let no more than *room* come back to a grant from holds."""
        if self.holds:
            held = self._held_of(grant_id)
            self._turn(grant_id, held - room, of=RETURNS, to=GONE)
            self._turn(grant_id, self._held_of(grant_id, BEYOND), of=BEYOND, to=GONE)

    def _unbind(self, pot: Pot) -> None:
        """Let what holds took beyond the amount come back, as far as the grant is not overused any more."""
        if self.holds:
            beyond = self._held_of(pot.grant.id, BEYOND)
            self._turn(pot.grant.id, beyond - pot.overused, of=BEYOND, to=RETURNS)

    def _held_of(self, grant_id: UUID | None, kind: Kind = RETURNS) -> int:
        return sum(
            one.amount
            for payments in self.holds.values()
            for one in payments
            if one.grant_id == grant_id and one[2:] == kind
        )

    def _room_of(self, grant_id: UUID | None) -> int:
        """How much a refund can give back to a grant, or take of overage."""
        if grant_id is None:
            return max(0, self.overage - self._held_of(None))
        pot = self._by_id.get(grant_id)
        if pot is None or pot.every is None:
            return NEVER
        return max(0, pot.amount - pot.left - self._held_of(grant_id))

    def _set_back_since(self, grant_id: UUID | None, paid_at_ms: int) -> bool:
        pot = self._by_id.get(grant_id) if grant_id is not None else None
        return pot is not None and pot.every is not None and pot.renewed_at_ms > paid_at_ms

    def _make_up(self, grant_id: UUID | None, amount: int) -> int:
        """Take *amount*, as far as it goes, off what was used beyond what the grant is of now; how much."""
        pot = self._by_id.get(grant_id) if grant_id is not None else None
        if pot is None or not pot.overused:
            return 0
        made_up = min(amount, pot.overused)
        pot.overused -= made_up
        self._unbind(pot)
        return made_up

    def _forget_overage_of_holds(self) -> None:
        self._turn(None, self._held_of(None), of=RETURNS, to=GONE)

    def _return(self, grant_id: UUID | None, amount: int) -> int:
        if grant_id is None:
            returned = min(amount, self.overage)
            self.overage -= returned
            return returned
        if not self._open(grant_id):
            return 0
        self._by_id[grant_id].left += amount
        return amount
