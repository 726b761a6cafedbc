"""The calendar of SQL is that of `quota.period`: what one counts in a period, the other finds there."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from random import Random

import asyncpg

from quota.period import CALENDAR_PERIODS, Calendar, window_at
from quota.values import instant_ms, instant_of

SEED = int(os.environ.get("PERIODS_SEED", "1"))
ASKED = 6_000
DAY_MS = 86_400_000
# Zones and days on which clocks do what breaks calendars; long enough ago that every zone database has them.
NASTY = (
    ("Africa/Cairo", "2023-04-28"),  # forward at midnight
    ("America/Havana", "2019-03-10"),
    ("America/Havana", "2019-11-03"),  # back at 01:00
    ("America/Sao_Paulo", "2017-10-15"),
    ("America/Sao_Paulo", "2018-02-18"),  # back at 00:00
    ("America/St_Johns", "2010-11-07"),  # back at 00:01: midnight comes twice
    ("Antarctica/Troll", "2019-03-31"),  # two hours at once
    ("Asia/Amman", "2021-10-29"),
    ("Asia/Beirut", "2019-10-27"),
    ("Asia/Kathmandu", "1986-01-01"),
    ("Asia/Pyongyang", "2018-05-05"),  # half an hour just before midnight
    ("Australia/Lord_Howe", "2019-04-07"),
    ("Europe/Berlin", "2025-03-30"),
    ("Europe/Berlin", "2025-10-26"),
    ("Europe/Dublin", "2019-10-27"),
    ("CET", "2019-10-27"),  # a name, and an abbreviation of something else
    ("EET", "2023-03-26"),
    ("Pacific/Apia", "2011-12-30"),  # does not exist
    ("Pacific/Kwajalein", "1993-08-21"),  # nor does this
)
QUIET = (
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "Asia/Kolkata",
    "Asia/Tokyo",
    "Pacific/Auckland",
)
PERIODS = """
    SELECT p.starts_at, p.ends_at
    FROM unnest($1::text[], $2::timestamptz[], $3::text[], $4::timestamptz[], $5::int[])
         WITH ORDINALITY AS a(per, at, timezone, anchor, cycle_months, place)
    CROSS JOIN LATERAL usage_period(a.per, a.at, a.timezone, a.anchor, a.cycle_months) p
    ORDER BY a.place
"""


def ms(text: str) -> int:
    return instant_ms(datetime.fromisoformat(text).replace(tzinfo=UTC))


def asked(random: Random) -> tuple[str, int, Calendar]:
    """A period, an instant near where a zone or a month ends, and a calendar."""
    anchor_ms = random.choice(
        [
            random.randrange(ms("1970-01-01"), ms("2030-01-01")),
            ms(f"2024-{random.choice(['02-29', '04-30', '08-31'])}") + random.randrange(DAY_MS),
            ms("2024-01-31") + random.choice([0, DAY_MS - 1]),
        ]
    )
    months = random.choice([1, 1, 1, 3, 12, random.randint(1, 120)])
    if random.random() < 0.7:
        zone, day = random.choice(NASTY)
        at_ms = ms(day) + random.choice(
            [random.randrange(-2 * DAY_MS, 2 * DAY_MS), 900_000 * random.randint(-192, 192)]
        )
    else:
        zone = random.choice(QUIET)
        at_ms = random.randrange(ms("1990-01-01"), ms("2035-01-01"))
    at_ms += random.choice([0, 0, -1, 1])
    return random.choice(CALENDAR_PERIODS), at_ms, Calendar(zone, anchor_ms, months)


async def test_the_periods_of_sql_are_those_of_python(database_url: str):
    random = Random(SEED)
    questions = [asked(random) for _ in range(ASKED)]
    connection = await asyncpg.connect(database_url)
    rows = await connection.fetch(
        PERIODS,
        [per for per, *_ in questions],
        [instant_of(at_ms) for _, at_ms, _ in questions],
        [calendar.timezone for *_, calendar in questions],
        [instant_of(calendar.anchor_ms) for *_, calendar in questions],
        [calendar.cycle_months for *_, calendar in questions],
    )
    await connection.close()

    for (per, at_ms, calendar), row in zip(questions, rows, strict=True):
        window = window_at(per, at_ms, calendar)
        ends_ms = None if row["ends_at"] is None else instant_ms(row["ends_at"])
        assert (instant_ms(row["starts_at"]), ends_ms) == window, (per, instant_of(at_ms), calendar)
        assert row["starts_at"].microsecond % 1000 == 0
