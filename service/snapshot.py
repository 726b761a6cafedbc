"""What PostgreSQL has of users at one position of the log, and what the log has of them behind it.

The log is looked through first, PostgreSQL read second (counters and position in one snapshot): the
other order would lose what is applied between the two. What of the log lies behind the position is
fetched last: entries do not change, and one that is gone by then makes us begin again.
"""

from __future__ import annotations

import json
from collections import defaultdict
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from quota.account import payments_of
from quota.period import CALENDAR_PERIODS, Calendar, window_at
from quota.values import instant_ms, instant_of
from service.accounts import stored_grant
from service.database import statement
from service.log_index import EntriesGoneError, LogIndex
from service.shards import entry_number
from service.usage_log import NewerVersionError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from uuid import UUID

    import asyncpg

    from quota.account import Payment
    from quota.burndown import Grant
    from quota.keys import ShardKeys
    from quota.scripts import Client
    from service.database import Database
    from service.usage_log import Entries, Line

__all__ = [
    "Event",
    "Late",
    "Snapshot",
    "Stored",
    "StoredHold",
    "calendar_of",
    "read_snapshot",
    "read_stored",
    "take_snapshot",
]

_SNAPSHOT_TRIES_MAX = 4  # what makes one necessary is rare: a restore, an epoch, a trim


class Event(NamedTuple):
    """A line of the log that is not applied yet, its cost, and its instant."""

    line: Line
    cost: int
    at_ms: int


class StoredHold(NamedTuple):
    """An open hold: what it took, of whom, and in which windows it counts."""

    feature: str
    amount: int
    cost: int
    price: tuple[int, int]  # micro-credits of a unit, as a fraction
    payments: list[Payment]
    windows: list[tuple[int, int]]  # seconds and end in ms
    reserved_ms: int
    expires_ms: int


class Late(NamedTuple):
    """Asks for the windows that ended last, as far as a record of then can still count in them."""

    at_ms: int
    grace_ms: int

    def windows(self, calendar: Calendar) -> dict[str, tuple[int, int, int, int]]:
        """By period: the start of the window before it, its start, its end, and the end of the running one."""
        found = {}
        for per in CALENDAR_PERIODS:
            running = window_at(per, self.at_ms, calendar)
            if running.end_ms is not None and self.at_ms < running.start_ms + self.grace_ms:
                last = window_at(per, running.start_ms - 1, calendar)
                before = window_at(per, last.start_ms - 1, calendar)
                found[per] = (before.start_ms, last.start_ms, running.start_ms, running.end_ms)
        return found


class Stored(NamedTuple):
    """What PostgreSQL has of a user; `holds` are the open ones in the order of their reserves.

    `before` are the units of the windows that ended last by feature and period, if they were asked for.
    """

    row: Any
    counters: list[Any]
    windows: list[Any]
    grants: list[Grant]
    holds: dict[str, StoredHold]
    before: dict[tuple[str, str], int]


class Snapshot(NamedTuple):
    """Users that exist, the events of each that are not applied, and the rules in force.

    Those are told by version and instant, as two of one version may have been in force: before and after
    PostgreSQL was set back.
    """

    found: list[Stored]
    tail: dict[UUID, list[Event]]
    rules: tuple[int, int] | None


async def read_snapshot(
    database: Database,
    redis: Client,
    shard: ShardKeys,
    user_ids: Sequence[UUID],
    *,
    late: Late | None = None,
    index: LogIndex | None = None,
) -> tuple[list[Stored], dict[UUID, list[Event]]]:
    """Those of *user_ids* that exist, and the events of each that are not applied.

    Without an *index* that is kept, the whole of the log that is not applied is looked through.

    Raises:
        NewerVersionError: the log has something that is not applied and that this version can not read.
    """
    if index is None:
        index = LogIndex(database, redis, shard)
    snapshot = await take_snapshot(database, index, shard, user_ids, late=late)
    return snapshot.found, snapshot.tail


async def take_snapshot(
    database: Database,
    index: LogIndex,
    shard: ShardKeys,
    user_ids: Sequence[UUID],
    *,
    late: Late | None = None,
) -> Snapshot:
    """As `read_snapshot`, by an index that is kept; and which rules are in force."""
    for _ in range(_SNAPSHOT_TRIES_MAX):
        view = await index.view(user_ids)
        async with (
            database.connection() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            row = await connection.fetchrow(statement("service", "snapshot_position"), shard.index)
            assert row is not None
            found = await read_stored(connection, user_ids, late=late)
        position = entry_number(row["last_entry_id"])
        if row["epoch"] != view.epoch or position < view.after:
            # The log is another one, or has to be read from further back.
            index.forget(view.generation)
            continue
        index.cut(position, epoch=view.epoch)
        if view.newer is not None:
            entry, reason = view.newer
            if entry > position:
                raise NewerVersionError(reason)
            continue  # applied by now, but what lies behind it was not looked at
        try:
            log = await index.read([one for one in view.lines if one[0] > position])
        except EntriesGoneError:
            index.forget(view.generation)
            continue
        rules = None if row["version"] is None else (row["version"], row["applied_at_ms"])
        return Snapshot(found, _tail(log, {*user_ids}), rules)
    raise RuntimeError(f"the log of shard {shard.index} keeps changing under a load")


async def read_stored(
    connection: asyncpg.Connection[Any], user_ids: Iterable[UUID], *, late: Late | None = None
) -> list[Stored]:
    """What the database has of the users, in whatever transaction *connection* is in."""
    rows = await connection.fetch(statement("service", "load_users"), list(user_ids))
    stored = {row["id"]: Stored(row, [], [], [], {}, {}) for row in rows}
    ids = list(stored)
    for row in await connection.fetch(statement("service", "load_counters"), ids):
        stored[row["user_id"]].counters.append(row)
    for row in await connection.fetch(statement("service", "load_windows"), ids):
        stored[row["user_id"]].windows.append(row)
    for row in await connection.fetch(statement("service", "load_grants"), ids):
        stored[row["user_id"]].grants.append(stored_grant(row))
    for row in await connection.fetch(statement("service", "load_holds"), ids):
        stored[row["user_id"]].holds[row["key"]] = _stored_hold(row)
    if late is not None:
        await _read_before(connection, stored, late)
    return list(stored.values())


async def _read_before(
    connection: asyncpg.Connection[Any], stored: dict[UUID, Stored], late: Late
) -> None:
    asked = [
        (user_id, per, *map(instant_of, bounds))
        for user_id, one in stored.items()
        for per, bounds in late.windows(calendar_of(one.row)).items()
    ]
    if asked:
        columns = [list(column) for column in zip(*asked, strict=True)]
        grace = timedelta(milliseconds=late.grace_ms)
        for row in await connection.fetch(statement("service", "count_windows"), *columns, grace):
            stored[row["user_id"]].before[row["feature"], row["per"]] = row["units"]


def calendar_of(row: Any) -> Calendar:
    """The calendar of a row of `load_users`."""
    return Calendar(row["timezone"], row["anchor_ms"], row["cycle_months"])


def _stored_hold(row: Any) -> StoredHold:
    numerator, _, denominator = row["price"].partition("/")
    return StoredHold(
        row["feature"],
        row["amount"],
        row["cost_micro"],
        (int(numerator), int(denominator)),
        payments_of(json.loads(row["payments"])),
        [(seconds, end_ms) for seconds, end_ms in json.loads(row["windows"])],
        instant_ms(row["reserved_at"]),
        instant_ms(row["expires_at"]),
    )


def _tail(log: Entries, wanted: set[UUID]) -> dict[UUID, list[Event]]:
    tail: dict[UUID, list[Event]] = defaultdict(list)
    for user_id, line, cost, at_ms, _ in log.lines:
        if user_id in wanted:
            tail[user_id].append(Event(line, cost, at_ms))
    return tail
