"""Applies a run of the usage log to PostgreSQL: one transaction, a dozen statements, whatever its size.

The log position is stored in the same transaction: a crash before the commit repeats the read, a
crash after it finds the position advanced. The row lock on the shard lets one worker at a time do it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from uuid import UUID

import asyncpg
import msgspec

from quota.values import instant_of
from quota.wire import mark_of
from service.database import durable_transaction, statement
from service.partitions import partitions_between
from service.usage_log import RESERVE, Entries, Unreadable
from worker.batch import KEY_SKEW_MS, LATE_GRACE_MS, Keyed, fold, keyed
from worker.holding import EXPIRED, RELEASED
from worker.members import members_of
from worker.writing import columns, write

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from service.database import Database

__all__ = ["Applied", "apply_run"]

# A plan that was made while a table was small, and kept, reads the whole table for each key of a run
# when it is large: a minute instead of milliseconds. To plan a run's statements takes a millisecond.
# And what looks up keys by the thousand never reads a table whole, even one whose statistics say that it is empty.
_PLAN_EACH_RUN = "SET LOCAL plan_cache_mode = force_custom_plan; SET LOCAL enable_seqscan = off"
# The last use of a feature is what the records say, also of a late one; else a trigger takes now for it.
_GIVES_LAST_USED = "SET LOCAL allotment.gives_last_used = on"
# A value that PostgreSQL refuses in a row of ours: the row is at fault, not the connection.
# The last one is for what is too deep or too large for it, as metadata of ten thousand levels.
_POISON = (
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.ProgramLimitExceededError,
)


class Write(Protocol):
    """Writes lines down in the transaction of *connection*."""

    async def __call__(
        self, connection: asyncpg.Connection[Any], lines: Sequence[Any]
    ) -> Written: ...


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of a run: *admitted* lines of the log, of which so many were repeats or unreadable."""

    admitted: int
    applied: int
    duplicates: int
    quarantined: int
    stale_users: int


async def apply_run(
    database: Database, shard: int, run: Entries, *, late_grace_ms: int = LATE_GRACE_MS
) -> Applied | None:
    """Apply *run* to PostgreSQL, exactly once.

    A record that says when it occurred counts there until *late_grace_ms* after the end of the period.
    None: another worker has the shard, or it moved on since the run was read.

    Raises:
        NotDurableError: a standby may lack it. It is not applied then, as far as anybody is told; the log
            keeps it until a later commit was heard of by the standby (`worker.tidy`).
    """
    write_lines = partial(_write_lines, late_grace_ms=late_grace_ms)
    try:
        return await _apply(database, shard, run, write_lines)
    except _POISON:
        return await _apply(database, shard, run, partial(_write_sound_lines, write_lines))


async def _apply(database: Database, shard: int, run: Entries, write: Write) -> Applied | None:
    async with database.connection() as connection, durable_transaction(connection):
        await connection.execute(f"{_PLAN_EACH_RUN}; {_GIVES_LAST_USED}")
        row = await connection.fetchrow(statement("worker", "lock_shard"), shard)
        if row is None or row["last_entry_id"] != run.after:
            return None
        written = await write(connection, run.lines)
        if written.stale:  # Redis has to load these users again
            await connection.execute(statement("worker", "note_stale"), [*written.stale])
        unreadable = [*run.unreadable, *written.poison]
        await _quarantine(connection, shard, unreadable)
        admitted = len(run.lines) + len(run.unreadable)
        await connection.execute(statement("worker", "advance_shard"), shard, run.last, admitted)
    applied = admitted - written.repeats - len(unreadable)
    return Applied(admitted, applied, written.repeats, len(unreadable), len(written.stale))


class Written(NamedTuple):
    """What became of lines: repeats, users whose standing in Redis is off by them, and what was refused."""

    repeats: int
    stale: set[UUID]
    poison: list[Unreadable]


async def _write_sound_lines(
    write_lines: Write, connection: asyncpg.Connection[Any], lines: Sequence[Any]
) -> Written:
    """Write *lines* down but those that PostgreSQL refuses, which it finds by halving.

    A record of several lines is never parted: its first line tells whether all are repeats.
    """
    try:
        async with connection.transaction():  # a savepoint
            return await write_lines(connection, lines)
    except _POISON as error:
        heads = [
            number for number, (_, line, _, _, _) in enumerate(lines) if line.number == 0 and number
        ]
        if not heads:
            # Redis counted them when it let them in.
            stale = {user_id for user_id, *_ in lines}
            return Written(0, stale, [_poison(one, error) for one in lines])
        middle = min(heads, key=lambda number: abs(number - len(lines) // 2))
    first = await _write_sound_lines(write_lines, connection, lines[:middle])
    second = await _write_sound_lines(write_lines, connection, lines[middle:])
    return Written(
        first.repeats + second.repeats,
        first.stale | second.stale,
        [*first.poison, *second.poison],
    )


def _poison(one: Any, error: Exception) -> Unreadable:
    _, line, _, _, entry_id = one
    place = f"{entry_id}/{line.key[:100]}/{line.number}".replace("\0", "\\0")
    return Unreadable(place, msgspec.json.encode(line), f"{type(error).__name__}: {error}")


async def _write_lines(
    connection: asyncpg.Connection[Any], lines: Sequence[Any], *, late_grace_ms: int
) -> Written:
    """Write *lines* down, whole."""
    if not lines:
        return Written(0, set(), [])
    keys = keyed(lines)
    members = await members_of(connection, lines)
    repeated = await _repeated(connection, lines, keys)
    batch = fold(lines, keys, repeated, members, late_grace_ms=late_grace_ms)
    await write(connection, batch)
    repeated.update(batch.ignored)
    # Redis counted the repeats once more.
    return Written(len(repeated), {lines[number][0] for number in repeated}, [])


async def _repeated(
    connection: asyncpg.Connection[Any], lines: Sequence[Any], keys: Keyed
) -> set[int]:
    """The numbers of the lines that were applied before, or stand twice in this run."""
    reserved = await _reserved_before(connection, lines)
    known_ids: set[Any] = set()
    if keys.timed:
        first, last = (
            _instant(keys.time_min_ms - KEY_SKEW_MS),
            _instant(keys.time_max_ms + KEY_SKEW_MS),
        )
        asked = [keys.ids[number] for number in keys.timed]
        users = [lines[number][0] for number in keys.timed]
        for partition in await partitions_between(connection, first, last):
            query = statement("worker", "repeated_ids").format(partition=partition)
            rows = await connection.fetch(query, asked, users)
            known_ids |= {(row["user_id"], str(row["id"])) for row in rows}
    known_marks: set[Any] = set()
    if keys.marked:
        users = [lines[number][0] for number, _ in keys.marked]
        rows = await connection.fetch(
            statement("worker", "repeated_marks"), users, [mark for _, mark in keys.marked]
        )
        known_marks = {(row["user_id"], row["mark"]) for row in rows}
    repeated = {
        number for number in keys.timed if (lines[number][0], keys.ids[number]) in known_ids
    }
    repeated |= {number for number, mark in keys.marked if (lines[number][0], mark) in known_marks}
    repeated |= reserved
    return _with_followers(lines, repeated)


async def _reserved_before(connection: asyncpg.Connection[Any], lines: Sequence[Any]) -> set[int]:
    """The numbers of the reserves whose key has a hold that is open, or was committed.

    One that ended with nothing used gives way: Redis has admitted its key anew because it lost it, and
    what its caller commits now is the first that counts.
    """
    reserves = {
        number: (user_id, line.key)
        for number, (user_id, line, _, _, _) in enumerate(lines)
        if line.code is not None and line.code.op == RESERVE
    }
    if not reserves:
        return set()
    users, keys = zip(*reserves.values(), strict=True)
    rows = await connection.fetch(statement("worker", "repeated_holds"), users, keys)
    known = {(row["user_id"], row["key"]): row["status"] for row in rows}
    ended = [key for key, status in known.items() if status in (RELEASED, EXPIRED)]
    if ended:
        marks = [mark_of(user_id, key) for user_id, key in ended]
        rows = [(*key, UUID(bytes=mark)) for key, mark in zip(ended, marks, strict=True)]
        await connection.execute(statement("worker", "forget_ended_holds"), *columns(rows))
    return {number for number, key in reserves.items() if key in known and key not in ended}


def _instant(ms: int) -> datetime:
    """The instant, or the nearest that there is: a caller's key may carry any time up to the year 10889."""
    return instant_of(min(max(ms, 0), 253_402_300_799_000))


def _with_followers(lines: Sequence[Any], repeated: set[int]) -> set[int]:
    """*repeated* with repeats inside the run, and with the further lines of each record."""
    seen: set[tuple[UUID, str]] = set()
    skipped: set[int] = set()
    record, skipping = None, False
    for number, (user_id, line, _, _, _) in enumerate(lines):
        if line.code is not None and line.code.op != RESERVE:
            continue  # the end of a hold has its key; whether it repeats, the hold tells
        key = (user_id, line.key)
        # A further line of another record than the last has lost its head: that one could not be read.
        if line.number == 0 or key != record:
            skipping = number in repeated or key in seen
            seen.add(key)
            record = key
        if skipping:
            skipped.add(number)
    return skipped


async def _quarantine(
    connection: asyncpg.Connection[Any], shard: int, unreadable: Iterable[Unreadable]
) -> None:
    rows = [(one.place, one.raw, one.reason.replace("\0", "\\0")) for one in unreadable]
    if rows:
        await connection.execute(statement("worker", "quarantine"), f"log:{shard}", *columns(rows))
