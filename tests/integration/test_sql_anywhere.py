"""Views and functions work from anywhere: whatever the caller's path is, and whatever zone a user is in."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest

from quota.period import Calendar, window_at
from quota.values import instant_ms, parse_user_id
from tests.integration.stacks import Real
from worker.deps import Deps

ANNA, BERT = parse_user_id("anna").id, parse_user_id("bert").id
TIERS: dict[str, Any] = {
    "default_tier": "free",
    "tiers": {
        "free": {
            "limits": {
                "event": [
                    {"max": 10, "per": "day"},
                    {"max": 10, "per": "cycle"},
                    {"max": 10, "per": "window:3600"},
                ]
            }
        }
    },
}
COUNT = "SELECT public.increment_feature_usage($1, 'event', $2)"
STATS = "SELECT per, used, resets_at FROM public.get_current_usage_stats($1)"


@pytest.fixture
async def connection(deps: Deps, apply_tiers: Any) -> Any:
    await apply_tiers(deps, TIERS)
    for user in ("anna", "bert"):
        await deps.quota.record(user, "event", 9)
    await Real(deps).apply()
    opened = await asyncpg.connect(deps.settings.asyncpg_dsn)
    yield opened
    await opened.close()


async def test_the_callers_path_does_not_matter(connection: Any):
    await connection.execute("SET search_path = ''")

    assert await connection.fetchval(COUNT, ANNA, 1) == 10
    assert [row["used"] for row in await connection.fetch(STATS, ANNA)] == [10, 10, 10]
    assert await connection.fetchval("SELECT count(*) FROM public.usage_alerts_view") == 6
    assert await connection.fetchval("SELECT count(*) FROM public.feature_events") == 3
    limits = await connection.fetch("SELECT * FROM public.usage_limits_of('free', 'event')")
    assert len(limits) == 3
    for per in ("hour", "day", "cycle"):
        for zone in ("UTC", "America/Havana"):
            assert await connection.fetchval(
                "SELECT starts_at FROM public.usage_period($1, now(), $2, now(), 1)", per, zone
            )


async def test_counting_by_hand_moves_the_last_use_whatever_the_path(connection: Any):
    before = await connection.fetchval("SELECT max(last_used) FROM feature_usage")
    await connection.execute("SET search_path = ''")

    await connection.execute("UPDATE public.feature_usage SET usage_count = usage_count + 1")

    after = await connection.fetchval("SELECT min(last_used) FROM public.feature_usage")
    assert after > before


async def test_a_zone_that_postgresql_lacks_is_utc_and_breaks_nobodys_view(connection: Any):
    await connection.execute("UPDATE users SET timezone = 'America/Nowhere' WHERE id = $1", ANNA)

    assert await connection.fetchval(COUNT, ANNA, 1) == 10
    seen = await connection.fetch("SELECT user_id, per, used, resets_at FROM usage_alerts_view")
    assert {(row["user_id"], row["per"]) for row in seen} == {
        (user, per) for user in (ANNA, BERT) for per in ("day", "cycle", "window:3600")
    }
    day = next(row for row in await connection.fetch(STATS, ANNA) if row["per"] == "day")
    assert day["used"] == 10
    assert (day["resets_at"].hour, day["resets_at"].minute) == (0, 0)


@pytest.mark.parametrize(
    ("zone", "expected"),
    [
        ("UTC", "UTC"),
        ("Europe/Berlin", "Europe/Berlin"),
        ("CET", "Europe/Brussels"),
        ("MET", "Europe/Brussels"),
        ("EET", "Europe/Athens"),
        ("WET", "Europe/Lisbon"),
        ("America/Nowhere", "UTC"),
        ("", "UTC"),
        ("Not a zone; at all", "UTC"),
        (None, None),
    ],
)
async def test_a_zone_has_the_name_by_which_postgresql_finds_it(
    connection: Any, zone: str | None, expected: str | None
):
    assert await connection.fetchval("SELECT usage_zone($1)", zone) == expected


async def test_names_that_look_like_abbreviations_have_summer_time(connection: Any):
    july = datetime(2025, 7, 15, 22, 30, tzinfo=UTC)  # past midnight where it is summer
    for zone in ("CET", "MET", "EET", "WET"):
        (row,) = await connection.fetch(
            "SELECT * FROM usage_period('day', $1, $2, to_timestamp(0), 1)", july, zone
        )

        window = window_at("day", instant_ms(july), Calendar(zone))
        assert (instant_ms(row["starts_at"]), instant_ms(row["ends_at"])) == window, zone
