"""A user's credits in PostgreSQL, as the pure account that moves them, and back.

Every change of credits that does not come through the log takes the account from here: it is walked to
the instant of the change first, over all that happens by itself (renewals, activations, holds that
expired), so that the change meets what the next decision would have met. The caller holds the user's
row and its shard, and nothing of the user waits in the log (`service.changes`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from quota.account import Account, payment_rows, payments_of
from quota.allowance import allowance_grant, allowance_id, moved_allowance
from quota.burndown import Grant
from quota.period import Calendar
from quota.values import instant_ms, instant_of, new_key
from service.database import statement
from service.units import counted_starts, take_back_units

if TYPE_CHECKING:
    from collections.abc import Iterable

    import asyncpg

    from quota.account import Move, Payment
    from quota.rules import Rules, Tier

__all__ = [
    "Entry",
    "StoredAccount",
    "load_account",
    "store_account",
    "stored_grant",
    "write_entries",
]

_PLACE_MAX = 0xFFF  # the 12 bits of a UUIDv7 between its time and its random digits
# The kinds of a move that are an entry under the same name; what a hold gives back was never one.
_MOVED = frozenset({"repaid", "renewed", "lapsed", "forgiven"})


class Entry(NamedTuple):
    """A movement of credits to be written down; *amount* in micro-credits."""

    kind: str
    grant_id: UUID | None
    amount: int
    at_ms: int


class _Hold(NamedTuple):
    """An open hold as it is stored."""

    feature: str
    amount: int
    payments: list[Payment]
    windows: list[tuple[int, int]]  # seconds and end in ms
    reserved_ms: int
    expires_ms: int


@dataclass(slots=True)
class StoredAccount:
    """An account, and what of it PostgreSQL has: what differs is written by `store_account`."""

    user_id: UUID
    rules: Rules
    tier: str
    calendar: Calendar
    account: Account
    rows: dict[UUID, Grant]
    overage: int
    holds: dict[str, _Hold]
    fresh: Grant | None = None  # an allowance that has no row yet
    expired: list[str] = field(default_factory=list)  # the holds that ended by themselves
    entries: list[Entry] = field(default_factory=list)

    def note(self, moves: Iterable[Move]) -> None:
        """Have *moves* of the account written down as entries."""
        self.entries += [Entry(*move) for move in moves if move.kind in _MOVED]

    def grant_named(self, name: str) -> Grant | None:
        """The grant of this name or id, as it is now."""
        grants = [one for one in self.account.grants() if one.id != allowance_id(self.user_id)]
        named = next((grant for grant in grants if grant.name == name), None)
        return named or next((grant for grant in grants if str(grant.id) == name), None)

    def change_allowance(self, tier: Tier | None, *, anchor_ms: int, at_ms: int) -> None:
        """Put the allowance of *tier* in the place of the one there is; what was used stays used."""
        allowance = allowance_id(self.user_id)
        changes = self.rules.allowances_of(tier.name) if tier is not None else ()
        others = [grant for grant in self.account.grants() if grant.id != allowance]
        found = next((one for one in self.account.grants() if one.id == allowance), None)
        if found is not None and found.id not in self.rows and found == self.fresh:
            found = None  # never touched: the new one begins as fresh
        changed: Grant | None
        if found is not None:
            changed = moved_allowance(changes, found, anchor_ms=anchor_ms, at_ms=at_ms)
        else:
            changed = allowance_grant(self.user_id, changes, None, anchor_ms=anchor_ms, at_ms=at_ms)
            self.fresh = changed
        self.account = Account(
            others if changed is None else [*others, changed],
            self.account.overage,
            at_ms=self.account.at_ms,
            holds=self.account.holds,
        )
        self.note(self.account.advance(at_ms))


async def load_account(
    connection: asyncpg.Connection[Any], user_id: UUID, rules: Rules, *, at_ms: int
) -> StoredAccount:
    """The account of a user that exists, walked to *at_ms*."""
    row = await connection.fetchrow(statement("service", "load_users"), [user_id])
    assert row is not None, "the caller has locked the user's row"
    grants = await connection.fetch(statement("service", "load_grants"), [user_id])
    rows = {grant["id"]: stored_grant(grant) for grant in grants}
    held = await connection.fetch(statement("service", "load_holds"), [user_id])
    holds = {hold["key"]: _stored_hold(hold) for hold in held}
    stored = rows.get(allowance_id(user_id))
    allowance = allowance_grant(
        user_id,
        rules.allowances_of(row["tier"]),
        stored,
        anchor_ms=row["anchor_ms"],
        at_ms=at_ms,
    )
    given = [grant for grant in rows.values() if grant is not stored]
    account = Account(
        given if allowance is None else [*given, allowance],
        row["overage_micro"],
        at_ms=row["overage_at_ms"] or 0,
        holds={key: hold.payments for key, hold in holds.items()},
    )
    calendar = Calendar(row["timezone"], row["anchor_ms"], row["cycle_months"])
    fresh = allowance if stored is None else None
    found = StoredAccount(
        user_id, rules, row["tier"], calendar, account, rows, row["overage_micro"], holds, fresh
    )
    _walk(found, at_ms)
    return found


def _walk(found: StoredAccount, at_ms: int) -> None:
    """Move the account to *at_ms*; a hold that expires on the way gives back what it holds."""
    due = [(hold.expires_ms, key) for key, hold in found.holds.items() if hold.expires_ms <= at_ms]
    for expires_ms, key in sorted(due):
        found.note(found.account.advance(expires_ms))
        _, moves = found.account.settle(key, 0)
        found.note(moves)
        found.expired.append(key)
    found.note(found.account.advance(at_ms))


async def store_account(connection: asyncpg.Connection[Any], found: StoredAccount) -> None:
    """Write down what became of the account since it was loaded, with its entries."""
    account = found.account
    await _store_grants(connection, found)
    if account.overage or found.overage:
        at = instant_of(account.at_ms)
        await connection.execute(
            statement("service", "set_overage"), found.user_id, account.overage, at
        )
    await _store_holds(connection, found)
    await write_entries(connection, found)


async def write_entries(connection: asyncpg.Connection[Any], found: StoredAccount) -> None:
    """Write the entries noted so far; `store_account` does, and whoever has to read them before."""
    rows = [
        (_entry_id(one.at_ms, place), one.grant_id, one.kind, one.amount, one.at_ms)
        for place, one in enumerate(found.entries)
        if one.amount
    ]
    found.entries.clear()
    if rows:
        ids, grants, kinds, amounts, instants = (list(column) for column in zip(*rows, strict=True))
        await connection.execute(
            statement("service", "add_credit_entries"),
            found.user_id,
            ids,
            grants,
            kinds,
            amounts,
            [*map(instant_of, instants)],
        )


def _entry_id(at_ms: int, place: int) -> UUID:
    """A UUIDv7 whose bits after the time are the place of the entry: movements of one instant stay in order."""
    fresh = UUID(new_key(now_ms=max(0, at_ms))).int
    return UUID(int=fresh & ~(_PLACE_MAX << 64) | min(place, _PLACE_MAX) << 64)


async def _store_grants(connection: asyncpg.Connection[Any], found: StoredAccount) -> None:
    changed: list[Grant] = []
    for grant in found.account.grants():
        before = found.rows.get(grant.id)
        if before is None:
            if grant != found.fresh:
                assert found.fresh is not None, "grants are made by add_grant, but the allowance"
                found.entries.insert(
                    0, Entry("granted", grant.id, found.fresh.amount, found.fresh.effective_at_ms)
                )
                await connection.execute(
                    statement("service", "add_allowance"), found.user_id, *_allowance_row(grant)
                )
        elif _movable(grant) != _movable(before):
            changed.append(grant)
    if changed:
        columns = (list(column) for column in zip(*map(_movable_row, changed), strict=True))
        await connection.execute(
            statement("service", "set_grants"), found.user_id, [one.id for one in changed], *columns
        )


def _movable(grant: Grant) -> tuple[object, ...]:
    """What of a stored grant can change."""
    shape = (grant.amount, grant.left, grant.every, grant.overused)
    return (*shape, grant.renewed_at_ms, grant.changed_at_ms, grant.voided_at_ms)


def _movable_row(grant: Grant) -> tuple[object, ...]:
    *rest, renewed_ms, changed_ms, voided_ms = _movable(grant)
    return (*rest, *map(_instant, (renewed_ms, changed_ms, voided_ms)))


def _allowance_row(grant: Grant) -> tuple[object, ...]:
    times = (grant.effective_at_ms, grant.created_at_ms)
    return (grant.id, *map(instant_of, times), *_movable_row(grant)[:-1])


def _instant(ms: Any) -> Any:
    return None if ms is None else instant_of(ms)


async def _store_holds(connection: asyncpg.Connection[Any], found: StoredAccount) -> None:
    changed = {
        key: json.dumps(payment_rows(payments))
        for key, payments in found.account.holds.items()
        if payments != found.holds[key].payments
    }
    if changed:
        await connection.execute(
            statement("service", "set_hold_payments"),
            found.user_id, list(changed), list(changed.values()),
        )  # fmt: skip
    if found.expired:
        await connection.execute(statement("service", "expire_holds"), found.user_id, found.expired)
    for key in found.expired:
        hold = found.holds[key]
        starts = counted_starts(
            found.calendar, occurred_ms=hold.reserved_ms, arrived_ms=hold.reserved_ms, grace_ms=0
        )
        await take_back_units(
            connection,
            found.user_id,
            hold.feature,
            hold.amount,
            starts=starts,
            windows=hold.windows,
        )


def _stored_hold(row: Any) -> _Hold:
    return _Hold(
        row["feature"],
        row["amount"],
        payments_of(json.loads(row["payments"])),
        [(seconds, end_ms) for seconds, end_ms in json.loads(row["windows"])],
        instant_ms(row["reserved_at"]),
        instant_ms(row["expires_at"]),
    )


def stored_grant(row: Any) -> Grant:
    """A grant as the pure rules take it, from a row of `load_grants` or `member_grants`."""
    return Grant(
        id=row["id"],
        name=row["name"],
        amount=row["amount_micro"],
        left=row["left_micro"],
        priority=row["priority"],
        kind=row["kind"],
        effective_at_ms=row["effective_at_ms"],
        expires_at_ms=row["expires_at_ms"],
        voided_at_ms=row["voided_at_ms"],
        created_at_ms=row["created_at_ms"],
        min_rollover=row["min_rollover_micro"],
        max_rollover=row["max_rollover_micro"],
        every=row["every"],
        renewed_at_ms=row["renewed_at_ms"],
        overused=row["overused_micro"],
        changed_at_ms=row["changed_at_ms"],
    )
