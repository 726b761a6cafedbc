from __future__ import annotations

import calendar as month_lengths
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from quota.errors import InvalidValueError
from quota.period import (
    CALENDAR_PERIODS,
    CYCLE_MONTHS_MAX,
    RENEWALS,
    Calendar,
    Window,
    parse_cycle_months,
    parse_per,
    parse_timezone,
    renewal_at,
    window_at,
)
from quota.values import instant_ms, instant_of, instant_text

LOCAL_PERIODS = ("hour", "day", "week", "month", "year")
ENDING_PERIODS = (*LOCAL_PERIODS, "cycle")
ZONES = sorted(name for name in available_timezones() if name not in {"localtime", "Factory"})
HOUR_MS = 3_600_000

# The years in which zones do what breaks calendars.
NASTY = [
    ("Africa/Cairo", 2023),  # clocks go forward at midnight, from which a day begins at 01:00
    ("America/Havana", 2024),  # forward at 00:00, back at 01:00
    ("America/Sao_Paulo", 2017),  # forward at 00:00, back at 00:00
    ("America/Scoresbysund", 2024),  # changed its offset and its rule in one night
    ("America/Toronto", 1919),  # forward at 23:30, over midnight
    ("America/St_Johns", 2010),  # back at 00:01: midnight comes twice
    ("Antarctica/Troll", 2024),  # two hours at once
    ("Asia/Amman", 2021),  # back at 01:00 to 00:00
    ("Asia/Beirut", 2023),  # back at 00:00 to 23:00
    ("Asia/Kathmandu", 1986),  # +05:30 to +05:45
    ("Asia/Pyongyang", 2018),  # half an hour forward just before midnight
    ("Australia/Lord_Howe", 2024),  # half an hour of summer time
    ("Europe/Amsterdam", 1937),  # +00:19:32 to +00:20
    ("Europe/Dublin", 2024),  # winter time is the exception
    ("Pacific/Apia", 2011),  # 30 December does not exist
    ("Pacific/Kwajalein", 1969),  # 30 September lasts two days
    ("Africa/Monrovia", 1972),  # -00:44:30 to 00:00
]


def at_ms(text: str) -> int:
    return instant_ms(datetime.fromisoformat(text))


def ends(window: Window) -> int:
    assert window.end_ms is not None
    return window.end_ms


def texts(window: Window) -> tuple[str, str]:
    return instant_text(window.start_ms), instant_text(ends(window))


calendars = st.builds(
    Calendar,
    timezone=st.sampled_from(ZONES),
    anchor_ms=st.integers(at_ms("1960-01-01T00:00Z"), at_ms("2100-01-01T00:00Z")),
    cycle_months=st.integers(1, CYCLE_MONTHS_MAX),
)
instants = st.integers(at_ms("1860-01-01T00:00Z"), at_ms("2200-01-01T00:00Z"))


# Tiling


@settings(max_examples=600)
@given(st.sampled_from(ENDING_PERIODS), instants, calendars)
def test_windows_tile_time_in_every_zone(per: str, now_ms: int, calendar: Calendar):
    window = window_at(per, now_ms, calendar)

    assert window.start_ms <= now_ms < ends(window)
    assert window_at(per, window.start_ms, calendar) == window
    assert window_at(per, ends(window) - 1, calendar) == window
    assert window_at(per, ends(window), calendar).start_ms == ends(window)
    assert ends(window_at(per, window.start_ms - 1, calendar)) == window.start_ms


@settings(max_examples=600)
@given(
    st.sampled_from(("day", "week", "month", "year")),
    st.datetimes(datetime(1971, 1, 1), datetime(2100, 1, 1)),  # noqa: DTZ001 - local time
    st.sampled_from(ZONES),
)
@example("day", datetime(2011, 12, 30, 12), "Pacific/Apia")  # noqa: DTZ001 - local time
@example("day", datetime(2010, 11, 7, 0, 0, 30), "America/St_Johns")  # noqa: DTZ001
def test_a_window_begins_at_the_first_instant_of_its_local_date(
    per: str, local: datetime, zone: str
):
    now_ms = instant_ms(local.replace(tzinfo=ZoneInfo(zone)))

    window = window_at(per, now_ms, Calendar(timezone=zone))

    first = instant_of(window.start_ms).astimezone(ZoneInfo(zone)).date()
    before = instant_of(window.start_ms - 1).astimezone(ZoneInfo(zone)).date()
    assert before < first
    assert first.weekday() == 0 or per != "week" or (first - before).days > 1
    assert first.day == 1 or per not in {"month", "year"} or (first - before).days > 1
    assert first.month == 1 or per != "year"


@pytest.mark.parametrize(("zone", "year"), NASTY)
@pytest.mark.parametrize("per", ["hour", "day"])
def test_a_year_of_windows_has_no_gap_and_no_overlap(per: str, zone: str, year: int):
    calendar = Calendar(timezone=zone)
    now_ms, year_ends_ms = at_ms(f"{year}-01-01T00:00Z"), at_ms(f"{year + 1}-01-02T00:00Z")

    while now_ms < year_ends_ms:
        window = window_at(per, now_ms, calendar)
        middle_ms = (window.start_ms + ends(window)) // 2
        assert window.start_ms <= now_ms < ends(window)
        assert window_at(per, middle_ms, calendar) == window
        assert window_at(per, ends(window), calendar).start_ms == ends(window)
        now_ms = ends(window)


# What the windows are


@pytest.mark.parametrize(
    ("per", "start", "end"),
    [
        ("hour", "2024-02-29T13:00:00Z", "2024-02-29T14:00:00Z"),
        ("day", "2024-02-29T00:00:00Z", "2024-03-01T00:00:00Z"),
        ("week", "2024-02-26T00:00:00Z", "2024-03-04T00:00:00Z"),
        ("month", "2024-02-01T00:00:00Z", "2024-03-01T00:00:00Z"),
        ("year", "2024-01-01T00:00:00Z", "2025-01-01T00:00:00Z"),
        ("cycle", "2024-02-01T00:00:00Z", "2024-03-01T00:00:00Z"),
    ],
)
def test_in_utc_windows_follow_the_calendar(per: str, start: str, end: str):
    window = window_at(per, at_ms("2024-02-29T13:14:15.016Z"), Calendar())

    assert texts(window) == (start, end)


def test_a_lifetime_has_no_end():
    assert window_at("lifetime", at_ms("2024-01-01T00:00Z"), Calendar()) == Window(0, None)


@pytest.mark.parametrize(
    ("zone", "at", "hours"),
    [
        ("Europe/Berlin", "2025-03-30T12:00Z", 23),
        ("Europe/Berlin", "2025-10-26T12:00Z", 25),
        ("Europe/Berlin", "2025-06-01T12:00Z", 24),
        ("Australia/Lord_Howe", "2024-04-06T20:00Z", 24.5),
        ("Antarctica/Troll", "2024-03-31T12:00Z", 22),
        ("Pacific/Kwajalein", "1969-09-30T12:00Z", 47),  # back by 23 hours, from +11 to -12
    ],
)
def test_a_day_is_as_long_as_the_clocks_make_it(zone: str, at: str, hours: float):
    window = window_at("day", at_ms(at), Calendar(timezone=zone))

    assert ends(window) - window.start_ms == hours * HOUR_MS


def test_a_day_without_a_midnight_begins_when_the_clocks_have_gone_forward():
    window = window_at("day", at_ms("2023-04-28T12:00Z"), Calendar(timezone="Africa/Cairo"))

    assert texts(window) == ("2023-04-27T22:00:00Z", "2023-04-28T21:00:00Z")


def test_a_day_whose_midnight_lies_inside_a_gap_begins_at_the_end_of_the_gap():
    window = window_at("day", at_ms("1919-03-31T12:00Z"), Calendar(timezone="America/Toronto"))

    assert texts(window) == ("1919-03-31T04:30:00Z", "1919-04-01T04:00:00Z")


def test_a_day_that_a_zone_skips_has_no_window():
    before = window_at("day", at_ms("2011-12-30T09:59Z"), Calendar(timezone="Pacific/Apia"))
    after = window_at("day", at_ms("2011-12-30T10:00Z"), Calendar(timezone="Pacific/Apia"))

    assert texts(before) == ("2011-12-29T10:00:00Z", "2011-12-30T10:00:00Z")
    assert texts(after) == ("2011-12-30T10:00:00Z", "2011-12-31T10:00:00Z")


def test_a_midnight_that_comes_twice_begins_the_day_the_first_time():
    calendar = Calendar(timezone="America/St_Johns")

    second_evening = window_at("day", at_ms("2010-11-07T03:00Z"), calendar)  # 23:30 on the 6th

    assert texts(second_evening) == ("2010-11-07T02:30:00Z", "2010-11-08T03:30:00Z")
    assert window_at("day", at_ms("2010-11-07T12:00Z"), calendar) == second_evening


def test_an_hour_that_the_clocks_repeat_is_two_windows():
    calendar = Calendar(timezone="Europe/Berlin")

    first = window_at("hour", at_ms("2025-10-26T00:30Z"), calendar)
    second = window_at("hour", at_ms("2025-10-26T01:30Z"), calendar)

    assert texts(first) == ("2025-10-26T00:00:00Z", "2025-10-26T01:00:00Z")
    assert texts(second) == ("2025-10-26T01:00:00Z", "2025-10-26T02:00:00Z")


def test_hours_follow_the_wall_clock_of_a_zone_with_a_quarter():
    window = window_at("hour", at_ms("2024-01-01T00:20Z"), Calendar(timezone="Asia/Kathmandu"))

    assert texts(window) == ("2024-01-01T00:15:00Z", "2024-01-01T01:15:00Z")


def test_half_an_hour_that_the_clocks_repeat_is_a_window_of_its_own():
    calendar = Calendar(timezone="Australia/Lord_Howe")

    window = window_at("hour", at_ms("2024-04-06T15:10Z"), calendar)

    assert texts(window) == ("2024-04-06T15:00:00Z", "2024-04-06T15:30:00Z")


# Cycles


@pytest.mark.parametrize(
    ("at", "start", "end"),
    [
        ("2024-01-31T10:00Z", "2024-01-31T10:00:00Z", "2024-02-29T10:00:00Z"),
        ("2024-02-29T09:59Z", "2024-01-31T10:00:00Z", "2024-02-29T10:00:00Z"),
        ("2024-03-01T00:00Z", "2024-02-29T10:00:00Z", "2024-03-31T10:00:00Z"),
        ("2024-04-30T10:00Z", "2024-04-30T10:00:00Z", "2024-05-31T10:00:00Z"),
        ("2023-03-01T00:00Z", "2023-02-28T10:00:00Z", "2023-03-31T10:00:00Z"),
        ("2024-01-31T09:59Z", "2023-12-31T10:00:00Z", "2024-01-31T10:00:00Z"),
    ],
)
def test_a_cycle_clamps_the_anchors_day_and_does_not_move_it(at: str, start: str, end: str):
    calendar = Calendar(anchor_ms=at_ms("2024-01-31T10:00Z"))

    assert texts(window_at("cycle", at_ms(at), calendar)) == (start, end)


def test_a_cycle_does_not_follow_the_time_zone():
    anchor_ms = at_ms("2024-01-31T10:00Z")
    now_ms = at_ms("2024-07-01T00:00Z")

    assert window_at("cycle", now_ms, Calendar("Asia/Tokyo", anchor_ms)) == window_at(
        "cycle", now_ms, Calendar("America/Lima", anchor_ms)
    )


@given(
    st.datetimes(datetime(1960, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
    st.integers(1, CYCLE_MONTHS_MAX),
    st.integers(-50, 50),
    st.integers(0, 10**9),
)
@example(datetime(2024, 1, 31, tzinfo=UTC), 1, 1, 0)
@example(datetime(2024, 2, 29, 23, 59, 59, 999_000, tzinfo=UTC), 12, -1, 0)
def test_every_cycle_begins_a_multiple_of_its_months_after_the_anchor(
    anchor: datetime, cycle_months: int, turns: int, later_ms: int
):
    anchor = anchor.replace(microsecond=anchor.microsecond // 1000 * 1000)

    def boundary(turn: int) -> datetime:
        year, month = divmod(anchor.year * 12 + anchor.month - 1 + turn * cycle_months, 12)
        last = month_lengths.monthrange(year, month + 1)[1]
        return anchor.replace(year=year, month=month + 1, day=min(anchor.day, last))

    start, end = boundary(turns), boundary(turns + 1)
    now_ms = instant_ms(start + timedelta(milliseconds=later_ms) % (end - start))
    calendar = Calendar(anchor_ms=instant_ms(anchor), cycle_months=cycle_months)

    assert window_at("cycle", now_ms, calendar) == Window(instant_ms(start), instant_ms(end))


# Recurrences


FAR = [
    "1001-01-31T23:59:59.999Z",
    "1582-10-15T00:00Z",
    "1969-12-31T23:59Z",
    "2024-02-29T12:00Z",
    "2025-01-31T10:00Z",
    "8998-12-31T23:59:59.999Z",
]


@settings(max_examples=300)
@given(
    every=st.sampled_from(RENEWALS),
    anchor_ms=st.sampled_from([at_ms(text) for text in FAR])
    | st.integers(at_ms(FAR[0]), at_ms(FAR[-1])),
    now_ms=instants | st.integers(at_ms(FAR[0]), at_ms(FAR[-1])),
)
def test_recurrences_tile_time_whatever_the_anchor(every: str, anchor_ms: int, now_ms: int):
    window = renewal_at(every, anchor_ms, now_ms)

    assert window.start_ms <= now_ms < ends(window)
    assert renewal_at(every, anchor_ms, window.start_ms) == window
    assert renewal_at(every, anchor_ms, ends(window) - 1) == window
    assert renewal_at(every, anchor_ms, ends(window)).start_ms == ends(window)
    assert ends(renewal_at(every, anchor_ms, window.start_ms - 1)) == window.start_ms


@pytest.mark.parametrize("every", RENEWALS)
@pytest.mark.parametrize("anchor", FAR)
def test_a_recurrence_begins_at_the_anchor(every: str, anchor: str):
    assert renewal_at(every, at_ms(anchor), at_ms(anchor)).start_ms == at_ms(anchor)
    assert ends(renewal_at(every, at_ms(anchor), at_ms(anchor) - 1)) == at_ms(anchor)


def test_months_are_clamped_to_their_last_day_and_do_not_drift():
    anchor_ms = at_ms("2023-01-31T10:00Z")
    starts, now_ms = [], anchor_ms
    for _ in range(15):
        starts.append(instant_text(now_ms)[:10])
        now_ms = ends(renewal_at("month", anchor_ms, now_ms))

    assert starts == [
        "2023-01-31", "2023-02-28", "2023-03-31", "2023-04-30", "2023-05-31",
        "2023-06-30", "2023-07-31", "2023-08-31", "2023-09-30", "2023-10-31",
        "2023-11-30", "2023-12-31", "2024-01-31", "2024-02-29", "2024-03-31",
    ]  # fmt: skip


def test_a_leap_day_recurs_on_the_last_of_february():
    anchor_ms = at_ms("2024-02-29T00:00Z")

    assert texts(renewal_at("month", anchor_ms, at_ms("2025-02-28T00:00Z"))) == (
        "2025-02-28T00:00:00Z",
        "2025-03-29T00:00:00Z",
    )


@given(anchor_ms=instants, now_ms=instants)
def test_months_recur_as_a_cycle_of_one_month(anchor_ms: int, now_ms: int):
    cycle = window_at("cycle", now_ms, Calendar(anchor_ms=anchor_ms))

    assert renewal_at("month", anchor_ms, now_ms) == cycle


@pytest.mark.parametrize(("every", "hours"), [("day", 24), ("week", 168)])
@given(anchor_ms=instants, now_ms=instants)
def test_days_and_weeks_are_so_many_hours_from_the_anchor(
    every: str, hours: int, anchor_ms: int, now_ms: int
):
    window = renewal_at(every, anchor_ms, now_ms)

    assert ends(window) - window.start_ms == hours * HOUR_MS
    assert (window.start_ms - anchor_ms) % (hours * HOUR_MS) == 0


# The edge


@pytest.mark.parametrize(
    "value", [*CALENDAR_PERIODS, "window:1", "window:18000", "window:31622400"]
)
def test_a_period_is_a_name_or_a_window_of_seconds(value: str):
    assert parse_per(value) == value


BAD: list[Any] = [
    None,
    -1,
    True,
    1.5,
    float("nan"),
    b"day",
    ["day"],
    {},
    "",
    "x" * 1_000_000,
    "day\0",
    "day\n",
    "\ud800",
]


@pytest.mark.parametrize(
    "value",
    [
        *BAD,
        "Day",
        "days",
        "decade",
        "window",
        "window:",
        "window:0",
        "window:-1",
        "window:01",
        "window:1.5",
        "window:1e3",
        "window:1e400",
        "window:1_000",
        "window:+1",
        "window: 1",
        "window:1\n",
        "window:31622401",
        "window:9007199254740992",
        "window:\uff11",
        "window:NaN",
        "window:Infinity",
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_bad_period_is_refused_by_name(value: object):
    with pytest.raises(InvalidValueError, match=r"^every: "):
        parse_per(value, field="every")


@pytest.mark.parametrize(
    "value", ["UTC", "Europe/Berlin", "America/Argentina/Ushuaia", "Etc/GMT+5"]
)
def test_a_time_zone_is_known_by_its_name(value: str):
    assert parse_timezone(value) == value


def test_every_zone_of_the_database_is_known():
    assert [parse_timezone(name) for name in ZONES] == ZONES


@pytest.mark.parametrize(
    "value",
    [
        *BAD,
        "Mars/Olympus",
        "America",
        "Europe/Berlin/",
        "../etc/passwd",
        "/etc/localtime",
        "/usr/share/zoneinfo/UTC",
        "posix/UTC",
        "right/UTC",
        "posixrules",
        "localtime",
        "Factory",
        "zone.tab",
        "tzdata.zi",
        "+02:00",
        "Europe/B\u0435rlin",
        "a/" * 100,
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_bad_time_zone_is_refused_by_name(value: object):
    with pytest.raises(InvalidValueError, match=r"^timezone: "):
        parse_timezone(value)


@pytest.mark.parametrize("value", [1, 12, CYCLE_MONTHS_MAX])
def test_a_cycle_has_some_months(value: int):
    assert parse_cycle_months(value) == value


@pytest.mark.parametrize(
    "value", [*BAD, 0, CYCLE_MONTHS_MAX + 1, 2**53, 1.0, "1"], ids=lambda v: str(v)[:20]
)
def test_bad_cycle_months_are_refused_by_name(value: object):
    with pytest.raises(InvalidValueError, match=r"^cycle_months: "):
        parse_cycle_months(value)
