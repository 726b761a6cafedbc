"""Gives units of a record back, and their credits to the grants that paid, last burnt first.

What a grant paid that is over by now does not come back: nobody could spend it. Nor does what a recurring
grant paid before it was set back: it is whole without it. The answer says so, by less credits than were
due. Units leave the running periods that counted them, so they can be used again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid5

from quota.errors import (
    InvalidValueError,
    KeyConflictError,
    QuotaUnavailableError,
    UnknownKeyError,
)
from quota.values import User, instant_of, new_key, parse_amount, parse_key, uuid7_time_ms
from service.accounts import Entry, write_entries
from service.changes import Change, changing_credits
from service.database import statement
from service.still import log_settled
from service.units import counted_starts, take_back_units

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from quota.account import Move
    from quota.rules import Rules
    from service.changes import Stores

__all__ = ["LATE_GRACE_MS", "Refunded", "refund"]

LATE_GRACE_MS = 3_600_000  # the default of LATE_GRACE
_OVER = "a grant that paid is over, or was set back since: what it paid does not come back"
_NOTHING_LEFT = "all of the record was refunded before"
_LESS_LEFT = "only so many units of the record were left to refund"


@dataclass(frozen=True, slots=True)
class Refunded:
    """What a refund came to: units, micro-credits due for them, and micro-credits that came back."""

    key: str
    refund_id: str
    amount: int
    due_micro: int
    credits_micro: int
    replayed: bool = False
    note: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """As JSON values, for an answer to a process without a database; see `quota.loading.Loader`."""
        return {
            "key": self.key,
            "refund_id": self.refund_id,
            "amount": self.amount,
            "due_micro": self.due_micro,
            "credits_micro": self.credits_micro,
            "replayed": self.replayed,
            "note": self.note,
        }


@dataclass(slots=True)
class _Line:
    """A line of the record, and how many units of it are given back now."""

    row: Any
    units: int = 0

    @property
    def left(self) -> int:
        return int(self.row["amount"]) - int(self.row["refunded"])

    @property
    def due_micro(self) -> int:
        """The share of the cost; shares of parts sum to the whole, however it is parted."""
        row = self.row
        share: int = row["cost_micro"] * (row["refunded"] + self.units) // row["amount"]
        return share - int(row["refunded_micro"])


async def refund(
    stores: Stores,
    user: User | None,
    rules: Rules,
    key: object,
    *,
    amount: object = None,
    refund_id: object = None,
    at: datetime | None = None,
    grace_ms: int = LATE_GRACE_MS,
) -> Refunded:
    """Give back *amount* units (None: all that are left) of the record *key*, at *at* (None: now).

    More than is left is clamped, so a repeat gives 0; one with the same *refund_id* answers as the first.
    Without a *user* the key has to be of one user only.

    Raises:
        UnknownKeyError, UnknownUserError, QuotaUnavailableError
        InvalidValueError: a value was refused, as an amount of a record of several lines, or the key is
            of several users.
        KeyConflictError: the refund id was used for another record.
    """
    key = parse_key(key)
    units = None if amount is None else parse_amount(amount)
    name = None if refund_id is None else _refund_id(refund_id)
    user = user or await _user_of(stores, key)
    async with changing_credits(stores, user, rules, at=at) as change:
        lines = await _lines(change, user, key)
        return await _refund(change, lines, key, units, name, grace_ms)


def _refund_id(found: object) -> str:
    try:
        return parse_key(found)
    except InvalidValueError as error:
        raise InvalidValueError("refund_id", found, error.expected) from None


async def _user_of(stores: Stores, key: str) -> User:
    """Who has the record; it may be in the log still, and then nobody knows whose it is."""
    found = await _users_of(stores, key)
    if not found:
        if not await log_settled(stores.database, stores.redis, stores.keys, settle=stores.settle):
            raise QuotaUnavailableError(
                "the usage log is behind, so the record may be in it: name the user, or try again"
            )
        found = await _users_of(stores, key)
    if not found:
        raise UnknownKeyError(key)
    if len(found) > 1:
        raise InvalidValueError("user_id", None, f"a user: several have used the key {key!r:.80}")
    return User(found[0], None)


async def _users_of(stores: Stores, key: str) -> list[UUID]:
    async with stores.database.connection() as connection:
        rows = await connection.fetch(statement("service", "refund_users"), key, _id_of(key))
    return [row["user_id"] for row in rows]


def _id_of(key: str) -> UUID | None:
    """The id of the record, where its key is a UUIDv7; it is not stored as a key then."""
    return None if uuid7_time_ms(key) is None else UUID(key)


async def _lines(change: Change, user: User, key: str) -> list[_Line]:
    rows = await change.connection.fetch(
        statement("service", "refund_lines"), user.id, key, _id_of(key)
    )
    if not rows:
        raise UnknownKeyError(key)
    return [_Line(row) for row in rows]


async def _refund(
    change: Change,
    lines: Sequence[_Line],
    key: str,
    units: int | None,
    name: str | None,
    grace_ms: int,
) -> Refunded:
    user_id, connection = change.stored.user_id, change.connection
    refund_id = name or new_key(now_ms=change.at_ms)
    ids = [uuid5(line.row["id"], refund_id) for line in lines]
    if name is not None:
        before = await connection.fetchrow(
            statement("service", "refund_repeated"), user_id, name, ids
        )
        assert before is not None, "it sums, so it always has a row"
        if before["key"] is not None and before["key"] != key:
            raise KeyConflictError(name)
        if before["rows"]:
            applied, due = before["applied_micro"], before["due_micro"]
            note = _OVER if applied < due else None
            return Refunded(key, name, before["amount"], due, applied, replayed=True, note=note)
    _choose(lines, units)
    total, due, applied = 0, 0, 0
    for place, (line, row_id) in reversed([*enumerate(zip(lines, ids, strict=True))]):
        given = await _give_back(change, line, grace_ms) if line.units else 0
        if line.units or (place == 0 and name is not None):
            await connection.execute(
                statement("service", "add_refund"),
                user_id,
                row_id,
                refund_id if place == 0 else str(row_id),
                line.row["id"],
                key,
                line.units,
                line.due_micro if line.units else 0,
                given,
                instant_of(change.at_ms),
            )
        total += line.units
        due += line.due_micro if line.units else 0
        applied += given
    return Refunded(key, refund_id, total, due, applied, note=_note(units, total, due, applied))


def _note(units: int | None, total: int, due: int, applied: int) -> str | None:
    """Why it is less than was asked for."""
    if total == 0:
        return _NOTHING_LEFT
    notes = [_OVER] if applied < due else []
    if units is not None and total < units:
        notes.append(_LESS_LEFT)
    return "; ".join(notes) or None


def _choose(lines: Sequence[_Line], units: int | None) -> None:
    """Say how many units of each line are given back: all, or *units* of the last ones."""
    if units is None:
        for line in lines:
            line.units = line.left
        return
    if len(lines) > 1 and not lines[0].row["held"]:
        raise InvalidValueError(
            "amount", units, "none: a record of several lines is refunded as a whole"
        )
    for line in reversed(lines):  # of a hold, what was asked for beyond it goes first
        line.units = min(units, line.left)
        units -= line.units


async def _give_back(change: Change, line: _Line, grace_ms: int) -> int:
    """Give the units of *line* back, and the credits; how many micro-credits came back."""
    user_id, row, connection = change.stored.user_id, line.row, change.connection
    starts = counted_starts(
        change.stored.calendar,
        occurred_ms=row["created_ms"],
        arrived_ms=row["arrived_ms"],
        grace_ms=grace_ms,
    )
    await take_back_units(
        connection, user_id, row["feature"], line.units, starts=starts, opened_ms=row["arrived_ms"]
    )
    await connection.execute(
        statement("service", "take_back_use"), user_id, row["feature"], line.units
    )
    moves: list[Move] = []
    for grant_id, part in await _payers(change, line):
        moves += await _return(change, line, grant_id, part)
    change.stored.note(moves)
    returned = [move for move in moves if move.kind == "returned"]
    change.stored.entries += [
        Entry("refund", move.grant_id, move.amount, change.at_ms) for move in returned
    ]
    return sum(move.amount for move in returned)


async def _payers(change: Change, line: _Line) -> list[tuple[UUID | None, int]]:
    """Who is due what of the line, last burnt first; what was due before is theirs no more."""
    burns = await change.connection.fetch(
        statement("service", "burns"), change.stored.user_id, line.row["id"]
    )
    passed, due = int(line.row["refunded_micro"]), line.due_micro
    found: list[tuple[UUID | None, int]] = []
    for burn in reversed(burns):
        skipped = min(passed, burn["amount_micro"])
        passed -= skipped
        part = min(due, burn["amount_micro"] - skipped)
        due -= part
        if part:
            found.append((burn["grant_id"], part))
    return found


async def _return(change: Change, line: _Line, grant_id: UUID | None, part: int) -> list[Move]:
    """Give *part* back to a grant; or reduce overage, and what was repaid of it goes to who repaid."""
    account = change.stored.account
    if grant_id is not None:
        return account.give_back([(grant_id, part)], part, paid_at_ms=line.row["arrived_ms"])
    held = sum(
        one.amount
        for payments in account.holds.values()
        for one in payments
        if one.grant_id is None and one.returns
    )
    open_micro = min(part, max(0, account.overage - held))
    moves = account.give_back([(None, open_micro)], open_micro, paid_at_ms=account.at_ms)
    rest = part - open_micro
    if rest:
        await write_entries(change.connection, change.stored)  # who repaid just now counts too
        renewals = account.renewals()
        rows = await change.connection.fetch(
            statement("service", "repayers"),
            change.stored.user_id,
            instant_of(line.row["created_ms"]),
            list(renewals),
            [*map(instant_of, renewals.values())],
        )
        for row in rows:
            share = min(rest, max(0, row["amount_micro"]))
            if share:
                rest -= share
                moves += account.give_back(
                    [(row["grant_id"], share)], share, paid_at_ms=account.at_ms
                )
    return moves
