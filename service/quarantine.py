"""Puts records that were set aside back where they belong, each once, however often it is tried.

First the record under its key, then the row is deleted: who dies in between repeats a key, and that
counts once. What came through the log was admitted already, so Redis may remember its key without
PostgreSQL ever having had the record: then the key is forgotten and the record admitted again. Should
both be in the log in the end, the second is a repeat to PostgreSQL.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

import msgspec

from quota.errors import InvalidValueError, KeyConflictError, UnknownUserError
from quota.values import instant_of, parse_key, parse_user_id, uuid7_time_ms
from quota.wire import mark_of
from service.database import statement
from service.jobs import RECORD_USAGE, deserialize_job, record_arguments
from service.shards import entry_number
from service.staleness import drop_stale_users
from service.usage_log import Entries, Line, NewerVersionError, decode_entry

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from quota.client import Quota
    from quota.keys import Keys
    from quota.scripts import Client
    from quota.values import User
    from service.database import Database

__all__ = ["ALREADY", "RECORDED", "REFUSED", "Quarantined", "Retried", "Retrier"]

RECORDED = "recorded"
ALREADY = "already there"  # by an earlier try, or because its producer sent it again
REFUSED = "refused"
_LOG = "log:"  # how the source of what was read from a shard's log begins
_LEGACY = "legacy:"  # and of a row of a legacy table, which is no use of anything
_NOTHING = msgspec.Raw(b"null")
_REASON_CHARS_MAX = 2_000
_decode_line = msgspec.json.Decoder(Line).decode
_UNREADABLE = (ValueError, RecursionError, OverflowError, msgspec.DecodeError, NewerVersionError)


class Quarantined(NamedTuple):
    """A row of `quarantined_records`."""

    id: int
    source: str
    place: str
    raw: bytes
    reason: str
    created_at: datetime
    retries: int


class Retried(NamedTuple):
    """What came of one; the *reason* of a refusal."""

    id: int
    outcome: str
    reason: str | None = None


class _Sought(NamedTuple):
    """A line that shall be recorded, and when it was admitted; *spare* is a key that nothing else has."""

    line: Line
    at_ms: int
    spare: str


class Retrier:
    """Retries records of one installation; *quota* may make the users that it does not know."""

    def __init__(self, database: Database, redis: Client, keys: Keys, quota: Quota) -> None:
        self._database = database
        self._redis = redis
        self._keys = keys
        self._quota = quota

    async def retry(self, row: Quarantined) -> Retried:
        """Record *row* and delete it, or note why that is refused.

        Raises:
            QuotaUnavailableError: Redis or a worker did not answer; nothing is noted, try again.
        """
        users: set[UUID] = set()
        try:
            if row.source.startswith(_LOG):
                outcomes = [await self._record_line(one, users) for one in _lines_of(row)]
            else:
                outcomes = [await self._record_job(row)]
        except (InvalidValueError, KeyConflictError, UnknownUserError, *_UNREADABLE) as error:
            reason = str(error).replace("\0", "\\0")[:_REASON_CHARS_MAX]
            async with self._database.connection() as connection:
                await connection.execute(statement("service", "refuse_quarantined"), row.id, reason)
            # Of an entry some lines may be recorded: a repeat finds them, and Redis is to count them once.
            await self._drop(users)
            return Retried(row.id, REFUSED, reason)
        await self._drop(users, recorded=row)
        return Retried(row.id, RECORDED if RECORDED in outcomes else ALREADY)

    async def _record_line(self, sought: _Sought, users: set[UUID]) -> str:
        line, at_ms, spare = sought
        if line.code is not None:
            raise ValueError("part of a hold: what became of it since is not known, record it anew")
        user, key = parse_user_id(line.user), parse_key(line.key)
        logged = await self._logged(user, key)
        if line.number in logged:
            return ALREADY
        if line.number or logged:
            # The key is that of the other lines of its record, which are, or may be, recorded under it.
            key = spare
            if await self._logged(user, key):
                return ALREADY
        call = _call(line, key, at_ms)
        try:
            known = (await self._quota.record(**call)).replayed
        except KeyConflictError:
            known = True
        if known:  # by Redis alone: it was admitted before it was set aside
            mark = mark_of(user.id, key)
            for ring in self._keys.shard_of(user.id).marks:
                await self._redis.hdel(ring, mark)
            await self._quota.record(**call)
        users.add(user.id)
        return RECORDED

    async def _record_job(self, row: Quarantined) -> str:
        if row.source.startswith(_LEGACY):
            raise ValueError(row.reason)
        job = deserialize_job(row.raw)
        if job["f"] != RECORD_USAGE:
            raise ValueError(job["k"].get("reason", f"no record: {job['f'][:80]!r}"))
        job_id = row.place.rpartition(" ")[0]
        receipt = await self._quota.record(**record_arguments(job["a"], job["k"], job_id=job_id))
        return ALREADY if receipt.replayed else RECORDED

    async def _logged(self, user: User, key: str) -> set[int]:
        """The lines that PostgreSQL has under a key."""
        usage_id = UUID(key) if uuid7_time_ms(key) is not None else None
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                statement("service", "logged_lines"), user.id, key, usage_id
            )
        return {row["line"] for row in rows}

    async def _drop(self, users: set[UUID], *, recorded: Quarantined | None = None) -> None:
        """Delete the row, and drop *users* from Redis, which may have counted them since the first time."""
        async with self._database.connection() as connection, connection.transaction():
            if recorded is not None:
                await connection.execute(statement("service", "delete_quarantined"), recorded.id)
            if users:
                await connection.execute(statement("service", "note_stale_users"), sorted(users))
        if users:
            await drop_stale_users(self._database, self._redis, self._keys)


def _lines_of(row: Quarantined) -> Iterable[_Sought]:
    """The lines in what was set aside of a log: one, or those of an entry that could not be read at all.

    Raises:
        ValueError, RecursionError, msgspec.DecodeError, NewerVersionError: it still can not be read.
    """
    entry_id, _, number = row.place.partition("/")
    at_ms, _ = entry_number(entry_id)
    spare = f"quarantined:{row.source}:{row.place}"
    if number:
        return [_Sought(_decode_line(row.raw), at_ms, spare)]
    texts = msgspec.json.decode(row.raw, type=dict[str, str])
    fields = {name.encode("latin-1"): text.encode("latin-1") for name, text in texts.items()}
    run = Entries(after="0-0", last="0-0")
    decode_entry(run, entry_id, fields)
    if run.unreadable:
        raise ValueError(run.unreadable[0].reason)
    return [
        _Sought(line, admitted_ms, f"{spare}/{number}")
        for number, (_, line, _, admitted_ms, _) in enumerate(run.lines)
    ]


def _call(line: Line, key: str, at_ms: int) -> dict[str, Any]:
    """A line as the arguments of `Quota.record`; it occurred when it was admitted, if it does not say."""
    metadata = bytes(line.metadata)
    occurred_ms = at_ms if line.occurred_at_ms is None else line.occurred_at_ms
    return {
        "user_id": line.user,
        "feature": line.feature,
        "amount": line.amount,
        "key": key,
        "format": line.format,
        "quality": line.quality,
        "metadata": None if metadata == bytes(_NOTHING) else json.loads(metadata),
        "occurred_at": instant_of(occurred_ms),
        "event_id": line.event_id,
        "event_type": line.event_type,
        "product_version": line.product_version,
        "session_id": line.session_id,
    }
