"""Units of a run, added up by user and feature, and for each period by the start of it."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from quota.period import window_at
from quota.values import instant_ms, instant_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime
    from uuid import UUID

    from quota.period import Calendar

__all__ = [
    "PERIODS",
    "count",
    "count_held",
    "count_windows",
    "counted_in",
    "instant_at",
    "starts_at",
]

PERIODS = ("hour", "day", "week", "month", "year", "cycle")
_CALENDARS_MAX = 100_000  # users' calendars kept with the windows that ran last; cleared when full

# By user and feature: units used, last use, metadata of it, starts of the periods that run, units
# counted in each, and units counted beyond those used: an open hold's.
Usage = dict[tuple["UUID", str], list[Any]]
# Units by user, feature, seconds and end in ms of a window opened by use; what comes back is taken off.
Windows = dict[tuple["UUID", str, int, int], int]


@lru_cache(maxsize=65_536)
def instant_at(ms: int) -> datetime:
    """The instant; the lines of one entry share it."""
    return instant_of(ms)


_running: dict[Calendar, tuple[int, int, tuple[datetime, ...]]] = {}


def starts_at(calendar: Calendar, at_ms: int) -> tuple[datetime, ...]:
    """The starts of the calendar's periods that run at *at_ms*: the same tuple while none of them ends."""
    running = _running.get(calendar)
    if running is None or not running[0] <= at_ms < running[1]:
        windows = [window_at(per, at_ms, calendar) for per in PERIODS]
        first = max(window.start_ms for window in windows)
        last = min(window.end_ms for window in windows if window.end_ms is not None)
        if len(_running) >= _CALENDARS_MAX:
            _running.clear()
        running = _running[calendar] = (
            first,
            last,
            tuple(instant_at(window.start_ms) for window in windows),
        )
    return running[2]


def counted_in(
    calendar: Calendar, occurred_ms: int, *, at_ms: int, grace_ms: int
) -> tuple[tuple[datetime, ...], bool]:
    """The starts of the periods that count a record admitted at *at_ms*, and whether it is late.

    Within *grace_ms* of a period's end, that is the period in which it occurred. Else it is the one
    that runs, and the record is late.
    """
    running = starts_at(calendar, at_ms)
    late, found = False, []
    for per, start in zip(PERIODS, running, strict=True):
        start_ms = instant_ms(start)
        counted = start
        if occurred_ms < start_ms:
            before_ms = window_at(per, start_ms - 1, calendar).start_ms
            if before_ms <= occurred_ms and at_ms < start_ms + grace_ms:
                counted = instant_at(before_ms)
            else:
                late = True
        found.append(counted)
    starts = tuple(found)
    return (running if starts == running else starts), late


def count(
    usage: Usage,
    key: tuple[UUID, str],
    amount: int,
    at: datetime,
    metadata: str | None,
    starts: tuple[datetime, ...],
) -> None:
    """Add *amount* units used at *at*, in the periods that begin at *starts*."""
    row = usage.get(key)
    if row is None:
        usage[key] = [amount, at, metadata, starts, [amount] * len(PERIODS), 0]
        return
    row[0] += amount
    if row[1] is None or at >= row[1]:
        row[1] = at
        row[2] = metadata if metadata is not None else row[2]
    if row[3] is starts:
        row[4] = [units + amount for units in row[4]]
    else:
        _merge(row, starts, amount)


def count_held(
    usage: Usage,
    key: tuple[UUID, str],
    counted: int,
    starts: tuple[datetime, ...],
    *,
    used: tuple[int, datetime, str | None] | None = None,
) -> None:
    """Add *counted* units to the periods (a negative number: they come back), and what of them is *used*.

    *used*: units, instant and metadata of a committed hold, which its reserve has counted.
    """
    row = usage.setdefault(key, [0, None, None, starts, [0] * len(PERIODS), 0])
    row[5] += counted
    if used is not None:
        units, at, metadata = used
        row[0] += units
        row[5] -= units
        if row[1] is None or at >= row[1]:
            row[1] = at
            row[2] = metadata if metadata is not None else row[2]
    _merge(row, starts, counted)


def _merge(row: list[Any], starts: tuple[datetime, ...], amount: int) -> None:
    """Count in each period by its start: of two, the later one counts on, alone."""
    merged = [
        (start, units + amount)
        if start == old
        else (max(start, old), amount if start > old else units)
        for start, old, units in zip(starts, row[3], row[4], strict=True)
    ]
    latest = tuple(start for start, _ in merged)
    row[3] = starts if latest == starts else latest  # the shared tuple keeps `count` quick
    row[4] = [units for _, units in merged]


def count_windows(
    windows: Windows,
    user_id: UUID,
    feature: str,
    opened: Iterable[tuple[int, int]],
    amount: int,
) -> None:
    """Add to each window that counts the units; which of several is the last, PostgreSQL knows."""
    for seconds, end_ms in opened:
        key = (user_id, feature, seconds, end_ms)
        windows[key] = windows.get(key, 0) + amount
