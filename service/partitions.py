"""Makes the monthly partitions of usage_logs, ahead of the time that they are needed.

The default partition takes what has no month of its own, so that being late loses nothing; what
it took is moved when its month is made.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import asyncpg
import structlog

from service.database import statement

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["make_partitions", "partitions_between"]

_log = structlog.get_logger("allotment.partitions")

_MONTHS_AHEAD_MAX = 1200
# Who reads or writes usage_logs waits behind us while we wait for its lock: at most this long.
_LOCK_TIMEOUT = "SET LOCAL lock_timeout = '2s'"
# And at most this long for the rows to move; what could not be moved stays where it was.
_MOVE_TIMEOUT_S = 300


async def make_partitions(
    connection: asyncpg.Connection[Any], *, now: datetime, months_ahead: int = 3
) -> list[str]:
    """Make the partitions of *now*'s month and the *months_ahead* after it; return the new ones.

    Safe to repeat, and while others do the same. A month whose locks are not to be had within
    two seconds is left for the next time, since its rows are safe in the default partition.
    An import of old usage calls it with *now* in the past, so that its months are made too.
    """
    assert now.tzinfo is not None, "a naive time has no month in UTC"
    assert 0 <= months_ahead <= _MONTHS_AHEAD_MAX
    assert not connection.is_in_transaction(), (
        "each month is a transaction, so that locks are short"
    )
    made = []
    there = await _names(connection)
    for start, end in _months(now.astimezone(UTC), count=months_ahead + 1):
        name = f"usage_logs_{start:%Y_%m}"
        if name in there:
            continue  # the common case takes no lock
        try:
            if await _make_partition(connection, name, start=start, end=end):
                made.append(name)
        except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
            _log.warning("partition.postponed", partition=name)
    return made


async def partitions_between(
    connection: asyncpg.Connection[Any], first: datetime, last: datetime
) -> list[str]:
    """The partitions that have the rows created from *first* to *last*; none is made until the transaction ends."""
    await connection.execute("LOCK TABLE ONLY usage_logs IN ROW EXCLUSIVE MODE")
    there = await _names(connection)
    months = range(_month_of(first), _month_of(last) + 1)
    named = (f"usage_logs_{_first_instant(month):%Y_%m}" for month in months)
    return ["usage_logs_default", *(name for name in named if name in there)]


async def _make_partition(
    connection: asyncpg.Connection[Any], name: str, *, start: datetime, end: datetime
) -> bool:
    """Make one, unless somebody else did; tell whether it was made."""
    async with connection.transaction():
        await connection.execute(_LOCK_TIMEOUT)
        await connection.execute(statement("service", "lock_partitions"))
        if name in await _names(connection):
            return False
        filled = statement("service", "make_partition").format(
            partition=name, start=start.isoformat(), end=end.isoformat()
        )
        await connection.execute(filled, timeout=_MOVE_TIMEOUT_S)
    return True


async def _names(connection: asyncpg.Connection[Any]) -> set[str]:
    return {row["name"] for row in await connection.fetch(statement("service", "partitions"))}


def _months(now: datetime, *, count: int) -> Iterator[tuple[datetime, datetime]]:
    """Yield the first instant of each month and of the one after it."""
    first = _month_of(now)
    for number in range(first, first + count):
        yield _first_instant(number), _first_instant(number + 1)


def _month_of(at: datetime) -> int:
    at = at.astimezone(UTC)
    return at.year * 12 + at.month - 1


def _first_instant(month: int) -> datetime:
    return datetime(month // 12, month % 12 + 1, 1, tzinfo=UTC)
