"""What grants have paid for holds, and what of it comes back when a hold ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["BEYOND", "GONE", "RETURNS", "Payment", "payment_rows", "payments_of", "turned"]

Kind = tuple[bool, bool]

RETURNS: Kind = (True, False)  # it comes back
BEYOND: Kind = (False, True)  # what comes back makes up for use beyond a smaller amount
GONE: Kind = (False, False)  # it lapses: the grant was set back since, or the overage forgiven


class Payment(NamedTuple):
    """What one grant paid for a hold; no grant means overage.

    It *returns* unless the grant was set back since then, or is of less by now than was used: of such
    use it is a part where it is *beyond*. A grant's payments beyond are never more than it is overused.
    """

    grant_id: UUID | None
    amount: int
    returns: bool = True
    beyond: bool = False


def payment_rows(payments: Iterable[Payment]) -> list[list[Any]]:
    """Payments as JSON values."""
    return [
        [None if one.grant_id is None else str(one.grant_id), one.amount, one.returns, one.beyond]
        for one in payments
    ]


def payments_of(rows: Iterable[Sequence[Any]]) -> list[Payment]:
    """The inverse of `payment_rows`; rows of three are of before there was a `beyond`."""
    return [Payment(None if row[0] is None else UUID(row[0]), *row[1:]) for row in rows]


def turned(
    payments: Iterable[Payment], grant_id: UUID | None, amount: int, *, of: Kind, to: Kind
) -> tuple[list[Payment], int]:
    """The payments with up to *amount* of the grant's turned from one kind to another; and how much was not.

    What returns comes first, for that is what a commit uses first.
    """
    found: list[Payment] = []
    for one in payments:
        if one.grant_id != grant_id:
            found.append(one)
            continue
        part = min(amount, one.amount) if one[2:] == of else 0
        amount -= part
        pieces = [one._replace(amount=one.amount - part), Payment(grant_id, part, *to)]
        for piece in reversed(pieces) if to == RETURNS else pieces:
            before = found[-1] if found else None
            if before and before == piece._replace(amount=before.amount):
                found[-1] = piece._replace(amount=before.amount + piece.amount)
            elif piece.amount:
                found.append(piece)
    return found, amount
