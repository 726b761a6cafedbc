"""The calendar windows in which usage is counted: half-open, and tiling time without gaps.

Usage counted in two windows, or in none, would be a wrong bill, so every boundary is an
instant that both neighbours share, also where a clock is put forward or back.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple
from zoneinfo import ZoneInfo

from quota.errors import InvalidValueError
from quota.values import instant_ms, instant_of, parse_instant

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "CALENDAR_PERIODS",
    "CYCLE_MONTHS_MAX",
    "RENEWALS",
    "WINDOW_SECONDS_MAX",
    "Calendar",
    "Window",
    "parse_anchor",
    "parse_cycle_months",
    "parse_per",
    "parse_timezone",
    "renewal_at",
    "window_at",
]

RENEWALS = ("day", "week", "month")  # how often a recurring grant is set back
CALENDAR_PERIODS = ("hour", "day", "week", "month", "year", "cycle", "lifetime")
WINDOW_SECONDS_MAX = 31_622_400  # a leap year
CYCLE_MONTHS_MAX = 120  # ten years; nobody is billed less often
ANCHOR_YEAR_MIN, ANCHOR_YEAR_MAX = (
    1970,
    2199,
)  # a cycle that began or begins further away is a mistyped date
YEAR_MIN, YEAR_MAX = 1000, 9000  # far from where `datetime` ends, so that no boundary overflows

_SLOT_MS = 15 * 60 * 1000  # offsets are multiples of it today, so that a slot has one window
_SLOTS_CACHED_MAX = 4_096  # each period in each zone, for the slots around now
_CYCLES_CACHED_MAX = 16_384  # one for each user of a busy process and day
_ZONES_CACHED_MAX = 1_024  # more than there are zones
_DAY_MS = 86_400_000
_RENEWAL_MS = {"day": _DAY_MS, "week": 7 * _DAY_MS}
_EPOCH_ORDINAL = date(1970, 1, 1).toordinal()
_HOUR = timedelta(hours=1)
_SECOND = timedelta(seconds=1)
_MONTHS_IN_YEAR = 12

_WINDOW = re.compile(r"window:([1-9][0-9]{0,7})")
_ZONE_NAME = re.compile(r"[A-Za-z0-9_+-]{1,60}(?:/[A-Za-z0-9_+-]{1,60}){0,3}")
# Files in a zone directory that are no IANA names: other time scales, and this machine's zone.
_NOT_ZONES = re.compile(r"(?:posix|right)/.*|localtime|posixrules|Factory")


class Window(NamedTuple):
    """Half-open `[start_ms, end_ms)` in epoch milliseconds; a lifetime has no end."""

    start_ms: int
    end_ms: int | None


@dataclass(frozen=True, slots=True)
class Calendar:
    """What a user's periods depend on."""

    timezone: str = "UTC"
    anchor_ms: int = 0
    cycle_months: int = 1

    def __post_init__(self) -> None:
        assert 1 <= self.cycle_months <= CYCLE_MONTHS_MAX


def parse_per(value: object, *, field: str = "per") -> str:
    """A period's name, or `window:<seconds>` of up to a leap year."""
    if isinstance(value, str):
        if value in CALENDAR_PERIODS:
            return str.__str__(value)
        match = _WINDOW.fullmatch(value)
        if match and int(match[1]) <= WINDOW_SECONDS_MAX:
            return match[0]
    names = ", ".join(CALENDAR_PERIODS)
    raise InvalidValueError(field, value, f"one of {names}, window:<1 to {WINDOW_SECONDS_MAX}>")


def parse_timezone(value: object) -> str:
    """The IANA name of a time zone that this machine's zone database knows."""
    if isinstance(value, str) and _ZONE_NAME.fullmatch(value) and not _NOT_ZONES.fullmatch(value):
        try:
            _zone(value)
        except (KeyError, ValueError, OSError):
            pass  # unknown; not a zone file; a directory such as "America"
        else:
            return str.__str__(value)
    raise InvalidValueError("timezone", value, "an IANA time zone such as 'Europe/Berlin'")


def parse_cycle_months(value: object) -> int:
    """Months in a billing cycle."""
    if type(value) is int and 1 <= value <= CYCLE_MONTHS_MAX:
        return value
    raise InvalidValueError("cycle_months", value, f"an integer from 1 to {CYCLE_MONTHS_MAX}")


def parse_anchor(value: object) -> datetime:
    """The instant that cycles and renewals are counted from."""
    anchor = parse_instant(value, field="anchor")
    if not ANCHOR_YEAR_MIN <= anchor.year <= ANCHOR_YEAR_MAX:
        raise InvalidValueError(
            "anchor",
            anchor.isoformat(),
            f"an instant in the years {ANCHOR_YEAR_MIN} to {ANCHOR_YEAR_MAX}",
        )
    return anchor


def window_at(per: str, at_ms: int, calendar: Calendar) -> Window:
    """The window of the calendar period *per* that contains *at_ms*.

    Hours to years follow the user's time zone. A day begins at its first instant, which
    is after midnight where clocks go forward over it; an hour that clocks repeat is
    counted twice. A cycle follows the anchor in UTC.
    """
    if per == "lifetime":
        return Window(0, None)
    if per == "cycle":
        day = at_ms // _DAY_MS
        windows = _cycles_in_day(calendar.anchor_ms, calendar.cycle_months, day)
    else:
        windows = _windows_in_slot(per, calendar.timezone, at_ms // _SLOT_MS)
    for window in windows:
        if window.end_ms is not None and at_ms < window.end_ms:
            return window
    raise AssertionError("the windows of a slot or day cover it")


def renewal_at(every: str, anchor_ms: int, at_ms: int) -> Window:
    """The stretch between two recurrences that contains *at_ms*, counted from *anchor_ms* in UTC.

    Days and weeks are of 24 and 168 hours; months are clamped as a cycle's are.
    """
    if every == "month":
        for window in _cycles_in_day(anchor_ms, 1, at_ms // _DAY_MS):
            assert window.end_ms is not None
            if at_ms < window.end_ms:
                return window
        raise AssertionError("the cycles of a day cover it")
    length_ms = _RENEWAL_MS[every]
    start_ms = at_ms - (at_ms - anchor_ms) % length_ms
    return Window(start_ms, start_ms + length_ms)


@lru_cache(maxsize=_SLOTS_CACHED_MAX)
def _windows_in_slot(per: str, timezone: str, slot: int) -> tuple[Window, ...]:
    """Every window that touches the slot, in order: one, unless a boundary lies inside."""
    at_ms, slot_end_ms = slot * _SLOT_MS, (slot + 1) * _SLOT_MS
    windows = []
    while at_ms < slot_end_ms:
        window = _local_window(per, at_ms, _zone(timezone))
        assert window.end_ms is not None
        assert window.start_ms <= at_ms < window.end_ms
        windows.append(window)
        at_ms = window.end_ms
    return tuple(windows)


def _local_window(per: str, at_ms: int, zone: tzinfo) -> Window:
    at = instant_of(at_ms)
    assert YEAR_MIN <= at.year <= YEAR_MAX
    if per == "hour":
        return _hour_at(at, zone)
    floor, following = _DATES[per]
    first = floor(at.astimezone(zone).date())
    start, end = _day_begins(first, zone), _day_begins(following(first), zone)
    while end <= at:
        # The clock went back over midnight: the date is yesterday's, but today has begun.
        first = following(first)
        start, end = end, _day_begins(following(first), zone)
    return Window(instant_ms(start), instant_ms(end))


def _following_month(first: date) -> date:
    return date(first.year + first.month // _MONTHS_IN_YEAR, first.month % _MONTHS_IN_YEAR + 1, 1)


# For each period: the first date of the one that a date lies in, and of the one after.
_DATES: dict[str, tuple[Callable[[date], date], Callable[[date], date]]] = {
    "day": (lambda day: day, lambda first: first + timedelta(days=1)),
    "week": (
        lambda day: day - timedelta(days=day.weekday()),  # Monday, as in ISO 8601
        lambda first: first + timedelta(days=7),
    ),
    "month": (lambda day: day.replace(day=1), _following_month),
    "year": (
        lambda day: day.replace(month=1, day=1),
        lambda first: first.replace(year=first.year + 1),
    ),
}


def _day_begins(day: date, zone: tzinfo) -> datetime:
    """The first instant at which the local date is *day*, or later where *day* is skipped."""
    midnight = datetime.combine(day, time(), tzinfo=zone)  # fold 0: the first of two
    start = midnight.astimezone(UTC)
    if start.astimezone(zone).replace(tzinfo=None) == midnight.replace(tzinfo=None):
        return start
    # PEP 495: in a gap, fold 1 reads the new offset, so it lies before the change.
    return _offset_change(midnight.replace(fold=1).astimezone(UTC), start, zone)


def _hour_at(at: datetime, zone: tzinfo) -> Window:
    """The wall-clock hour around *at*, cut where the offset changes inside it."""
    local = at.astimezone(zone)
    into = timedelta(minutes=local.minute, seconds=local.second, microseconds=local.microsecond)
    start, end = at - into, at - into + _HOUR
    offset = local.utcoffset()
    if start.astimezone(zone).utcoffset() != offset:
        start = _offset_change(start, at, zone)
    if (end - _SECOND).astimezone(zone).utcoffset() != offset:
        end = _offset_change(at, end - _SECOND, zone)
    return Window(instant_ms(start), instant_ms(end))


def _offset_change(before: datetime, after: datetime, zone: tzinfo) -> datetime:
    """The whole second in `(before, after]` from which the offset is that of *after*."""
    before, changed = before.replace(microsecond=0), after.astimezone(zone).utcoffset()
    low, high = 0, -(-(after - before) // _SECOND)
    while high - low > 1:  # halves at most two days: 18 rounds
        middle = (low + high) // 2
        if (before + middle * _SECOND).astimezone(zone).utcoffset() == changed:
            high = middle
        else:
            low = middle
    return before + high * _SECOND


@lru_cache(maxsize=_CYCLES_CACHED_MAX)
def _cycles_in_day(anchor_ms: int, cycle_months: int, day: int) -> tuple[Window, ...]:
    """Every cycle that touches the UTC day, in order: two when the anchor's time is in it."""
    first = _cycle_at(day * _DAY_MS, anchor_ms, cycle_months)
    assert first.end_ms is not None
    if first.end_ms >= (day + 1) * _DAY_MS:
        return (first,)
    return first, _cycle_at(first.end_ms, anchor_ms, cycle_months)


def _cycle_at(at_ms: int, anchor_ms: int, cycle_months: int) -> Window:
    anchor, at = instant_of(anchor_ms), instant_of(at_ms)
    assert YEAR_MIN <= at.year <= YEAR_MAX
    at_month = at.year * _MONTHS_IN_YEAR + at.month
    into = (at_month - anchor.year * _MONTHS_IN_YEAR - anchor.month) % cycle_months
    start_ms = _clamped_ms(at_month - into, anchor_ms)
    if start_ms > at_ms:
        return Window(_clamped_ms(at_month - into - cycle_months, anchor_ms), start_ms)
    return Window(start_ms, _clamped_ms(at_month - into + cycle_months, anchor_ms))


def _clamped_ms(month: int, anchor_ms: int) -> int:
    """The anchor's day and time in *month*, counted from year 0, or in the month's last day."""
    first = _first_of(month).toordinal()
    day = min(instant_of(anchor_ms).day, _first_of(month + 1).toordinal() - first)
    return (first + day - 1 - _EPOCH_ORDINAL) * _DAY_MS + anchor_ms % _DAY_MS


def _first_of(month: int) -> date:
    return date((month - 1) // _MONTHS_IN_YEAR, (month - 1) % _MONTHS_IN_YEAR + 1, 1)


@lru_cache(maxsize=_ZONES_CACHED_MAX)
def _zone(name: str) -> tzinfo:
    # UTC needs no zone database, which a slim container may lack.
    return UTC if name == "UTC" else ZoneInfo(name)
