"""Gives units of a record back, for `quota.testing`: the credits go to who paid, last burnt first."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from quota.errors import InvalidValueError
from quota.refund import Refund

if TYPE_CHECKING:
    from uuid import UUID

    from quota.testing.given import Given, Use
    from quota.testing.member import Member

__all__ = ["refunded", "repeated"]

_OVER = "a grant that paid is over, or was set back since: what it paid does not come back"
_NOTHING_LEFT = "all of the record was refunded before"
_LESS_LEFT = "only so many units of the record were left to refund"


def refunded(member: Member, given: Given, units: int | None) -> Refund:
    """Give *units* (None: all that are left) of what was counted under a key back.

    Raises:
        InvalidValueError: a part of a record of several lines.
    """
    if units is not None and len(given.uses) > 1 and given.hold is None:
        expected = "none: a record of several lines is refunded as a whole"
        raise InvalidValueError("amount", units, expected)
    asked, total, due, applied = units, 0, 0, 0
    for use in reversed(given.uses):
        left = use.amount - use.refunded
        part = left if units is None else min(units, left)
        units = None if units is None else units - part
        if part:
            share = use.cost * (use.refunded + part) // use.amount - use.refunded_micro
            total, due = total + part, due + share
            applied += _give_back(member, use, part, share)
    note = _note(asked, total, due, applied)
    return Refund(given.records[0].key, total, applied, due, note)


def repeated(first: Refund) -> Refund:
    """What a refund answers that was asked for again under its id."""
    return replace(first, note=_OVER if first.credits_micro < first.due_micro else None)


def _note(asked: int | None, total: int, due: int, applied: int) -> str | None:
    if total == 0:
        return _NOTHING_LEFT
    notes = [_OVER] if applied < due else []
    if asked is not None and total < asked:
        notes.append(_LESS_LEFT)
    return "; ".join(notes) or None


def _give_back(member: Member, use: Use, units: int, due: int) -> int:
    member.counters.give_back(use.feature, units, use.places)
    applied, passed, rest = 0, use.refunded_micro, due
    for grant_id, paid in reversed(use.payments):
        skipped = min(passed, paid)
        passed -= skipped
        part = min(rest, paid - skipped)
        rest -= part
        if part:
            applied += _return(member, use, grant_id, part)
    use.refunded += units
    use.refunded_micro += due
    return applied


def _return(member: Member, use: Use, grant_id: UUID | None, part: int) -> int:
    """Give *part* back to a grant; or reduce overage, and what was repaid of it goes to who repaid."""
    account, ledger = member.account, member.ledger
    if grant_id is not None:
        return ledger.refunded(
            account.give_back([(grant_id, part)], part, paid_at_ms=use.paid_at_ms)
        )
    held = sum(
        one.amount
        for payments in account.holds.values()
        for one in payments
        if one.grant_id is None and one.returns
    )
    open_micro = min(part, max(0, account.overage - held))
    paid_at_ms = account.at_ms
    moves = account.give_back([(None, open_micro)], open_micro, paid_at_ms=paid_at_ms)
    applied = ledger.refunded(moves)
    rest = part - open_micro
    for repayer, repaid in ledger.repayers(use.at_ms, account.renewals()):
        share = min(rest, repaid)
        if share > 0:
            rest -= share
            moves = account.give_back([(repayer, share)], share, paid_at_ms=paid_at_ms)
            applied += ledger.refunded(moves)
    return applied
