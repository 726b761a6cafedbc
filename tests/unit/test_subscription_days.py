"""Day N of M: days of the user's calendar, at their boundaries."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from service.subscriptions import Days, days_of

MS = timedelta(milliseconds=1)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def days(start: str, end: str | None, now: datetime, zone: str = "UTC") -> Days:
    return days_of(at(start), None if end is None else at(end), at=now, timezone=zone)


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        ("2026-12-01T10:00", Days(1, 31, 30)),  # the instant at which it starts
        ("2026-12-01T23:59:59.999", Days(1, 31, 30)),
        ("2026-12-02T00:00", Days(2, 31, 29)),
        ("2026-12-31T00:00", Days(31, 31, 0)),
        ("2026-12-31T23:59:59.999", Days(31, 31, 0)),
        ("2027-01-01T00:00", Days(31, 31, 0)),  # over, and nobody has looked yet
        ("2027-02-01T00:00", Days(31, 31, 0)),
        ("2026-11-30T00:00", Days(1, 31, 30)),  # by a clock that is behind
    ],
)
def test_the_first_day_is_one_and_on_the_last_none_remains(now: str, expected: Days):
    assert days("2026-12-01T10:00", "2027-01-01T00:00", at(now)) == expected


def test_a_stretch_that_ends_within_a_day_has_a_part_of_it():
    assert days("2026-12-01T10:00", "2026-12-03T00:00:00.001", at("2026-12-03")) == Days(3, 3, 0)
    assert days("2026-12-01T10:00", "2026-12-01T10:01", at("2026-12-01T10:00")) == Days(1, 1, 0)


def test_a_stretch_without_an_end_counts_its_days():
    assert days("2024-02-28T12:00", None, at("2024-03-01T00:00")) == Days(3, None, None)


@pytest.mark.parametrize(
    ("zone", "expected"),
    [
        ("UTC", Days(1, 2, 1)),
        ("Asia/Kathmandu", Days(2, 2, 0)),  # 04:44 of the next day there
        ("America/Los_Angeles", Days(1, 1, 0)),
    ],
)
def test_days_are_those_of_the_users_time_zone(zone: str, expected: Days):
    now = at("2026-06-10T22:59")
    assert days("2026-06-10T12:00", "2026-06-11T06:00", now, zone) == expected


@pytest.mark.parametrize(
    ("start", "end", "length"),
    [
        ("2025-03-29T23:00", "2025-03-30T22:00", 1),  # 23 hours in Berlin
        ("2025-10-25T22:00", "2025-10-26T23:00", 1),  # 25 hours
        ("2025-03-28T23:00", "2025-03-31T22:00", 3),
    ],
)
def test_a_day_of_23_or_25_hours_is_one_day(start: str, end: str, length: int):
    first, last = at(start), at(end) - MS

    assert days(start, end, first, "Europe/Berlin") == Days(1, length, length - 1)
    assert days(start, end, last, "Europe/Berlin") == Days(length, length, 0)


def test_where_clocks_go_back_over_midnight_the_day_that_has_begun_goes_on():
    # In Havana 2 November 2025 has two hours from midnight to one, of one day.
    start, end = "2025-11-02T04:00", "2025-11-03T05:00"

    assert days(start, end, at("2025-11-02T05:30"), "America/Havana") == Days(1, 1, 0)
    # In the Azores 26 October 2025 begins, and an hour later it is 23:00 of the 25th again.
    now = at("2025-10-26T01:30")
    assert days("2025-10-26T00:00", "2025-10-27T01:00", now, "Atlantic/Azores") == Days(1, 1, 0)
