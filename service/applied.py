"""How far a log was applied whose entry at the stored position is lost: Redis was set back.

What a Redis that was set back has admitted since stands at the end of its log, and was never applied, though a
clock that is slower than that of the lost Redis may have given it ids below the stored position. What stands
before came from the lost Redis, and was applied. PostgreSQL tells them apart: it has a line under its key with
the very instant of its entry, and of a repeat with another one. So the last entry that it has is where to go on.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from quota.values import instant_of
from service.database import statement
from service.usage_ids import usage_id
from service.usage_log import RESERVE, Entries, NewerVersionError, decode_entry

if TYPE_CHECKING:
    from collections.abc import Sequence

    import asyncpg

    from quota.keys import ShardKeys
    from quota.scripts import Client

__all__ = ["entry_before", "proven_position"]

_ENTRIES_FIRST = 2  # mostly nothing was admitted since, and the last entry is known
_ENTRIES_MAX = 50  # at once: of 400 lines each
_SEQ_MAX = 2**64 - 1
# As in worker.apply: what looks up keys never reads a table whole, whatever its statistics say.
_BY_KEY = "SET LOCAL plan_cache_mode = force_custom_plan; SET LOCAL enable_seqscan = off"


async def proven_position(
    connection: asyncpg.Connection[Any], redis: Client, shard: ShardKeys, position: str
) -> str:
    """The last entry before *position* that was applied, else what lies just before the first one.

    *position* itself, if the log has nothing before it. In the transaction of *connection*.
    """
    if position == "0-0":
        return position
    await connection.execute(_BY_KEY)
    oldest, count = position, _ENTRIES_FIRST
    while found := await redis.xrevrange(shard.log, max=f"({oldest}", count=count):
        applied = await _last_applied(connection, found)
        if applied is not None:
            return applied
        oldest, count = found[-1][0].decode(), _ENTRIES_MAX
    return position if oldest == position else entry_before(oldest)


def entry_before(entry_id: str) -> str:
    """The highest id below *entry_id*."""
    ms, seq = map(int, entry_id.split("-"))
    return f"{ms}-{seq - 1}" if seq else f"{ms - 1}-{_SEQ_MAX}"


async def _last_applied(connection: asyncpg.Connection[Any], found: Sequence[Any]) -> str | None:
    """The id of the last of these entries that PostgreSQL has a line of; they come newest first."""
    run = Entries(after="0-0", last="0-0")
    for entry_id, fields in reversed(found):
        # One of a newer version was applied by a newer worker, or by nobody: nothing is known of it.
        with suppress(NewerVersionError):
            decode_entry(run, entry_id.decode(), fields)
    lines = [one for one in run.lines if _is_known_by_its_key(one[1])]
    if not lines:
        return None
    rows = [
        (
            user_id,
            usage_id(user_id, line.key, at_ms),
            line.key,
            instant_of(at_ms if line.occurred_at_ms is None else line.occurred_at_ms),
            instant_of(at_ms),
        )
        for user_id, line, _, at_ms, _ in lines
    ]
    columns = [list(column) for column in zip(*rows, strict=True)]
    places = await connection.fetch(statement("service", "applied_lines"), *columns)
    last = max((row["place"] for row in places), default=None)
    if last is None:
        return None
    *_, applied = lines[last - 1]
    return str(applied)


def _is_known_by_its_key(line: Any) -> bool:
    """Whether it is the first line of a record, or a reserve: other lines have ids of other kinds."""
    return line.number == 0 and (line.code is None or line.code.op == RESERVE)
