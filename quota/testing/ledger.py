"""Which grants have paid what: for `quota.testing`, what the credit entries are for the service."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from uuid import UUID

    from quota.account import Move, Payments

__all__ = ["Ledger"]


class _Repayment(NamedTuple):
    grant_id: UUID
    amount: int
    at_ms: int


class Ledger:
    """What each grant paid and has not got back, and the overage that it repaid."""

    def __init__(self) -> None:
        self._paid: Counter[UUID] = Counter()
        self._repaid: list[_Repayment] = []

    def burnt(self, payments: Payments) -> None:
        """Note what paid for a record that is counted for good."""
        for grant_id, paid in payments:
            if grant_id is not None:
                self._paid[grant_id] += paid

    def moved(self, moves: Iterable[Move]) -> None:
        """Note what a walk of the account says was repaid."""
        for move in moves:
            if move.kind == "repaid" and move.grant_id is not None:
                self._paid[move.grant_id] += move.amount
                self._repaid.append(_Repayment(move.grant_id, move.amount, move.at_ms))

    def refunded(self, moves: Iterable[Move]) -> int:
        """Note what a refund gave back, which may repay overage; return how much, overage included."""
        moves = list(moves)
        self.moved(moves)
        returned = [move for move in moves if move.kind == "returned"]
        for move in returned:
            if move.grant_id is not None:
                self._paid[move.grant_id] -= move.amount
        return sum(move.amount for move in returned)

    def repayers(self, since_ms: int, renewals: Mapping[UUID, int]) -> Payments:
        """The grants that repaid overage since then, newest first.

        With how much may go back to each: no grant gets more than it paid, and a recurring one nothing
        of before its renewal.
        """
        since: Counter[UUID] = Counter()
        last_ms: dict[UUID, int] = {}
        for grant_id, amount, at_ms in self._repaid:
            if at_ms >= max(since_ms, renewals.get(grant_id, since_ms)):
                since[grant_id] += amount
            last_ms[grant_id] = at_ms
        newest = sorted(since, key=lambda grant_id: (-last_ms[grant_id], grant_id))
        return [(grant_id, min(since[grant_id], self._paid[grant_id])) for grant_id in newest]
