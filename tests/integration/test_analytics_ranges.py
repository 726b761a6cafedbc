"""The last N days have all that the seed's own queries count, and the beginning of the day in which they begin."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from service import analytics
from service.database import Database
from service.identity import Identity
from service.rollups import fold_all
from service.urls import sqlalchemy_url
from tests.integration.test_analytics import ANNA, OF_A_USER, SEED

ADMIN = Identity(None, admin=True)
RANGES = {  # how many days, and which column says how often
    "credit_summary": (30, 1),
    "by_action": (30, 1),
    "daily": (30, 1),
    "platform": (7, 1),
    "ranking": (30, 3),
    "weekly_trends": (84, 2),
}
LOG = """
    INSERT INTO usage_logs (user_id, action, credits_consumed, created_at)
    SELECT $1, 'export', 1.5, at FROM unnest($2::timestamptz[]) AS at
"""
# The first and the last hour of every range, and what is in none.
INSIDE = ("1 hour", "6 days 23 hours", "29 days 23 hours", "83 days 23 hours", "120 days")


@pytest.fixture
async def owner(database_url: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    connection = await asyncpg.connect(database_url)
    await connection.execute(
        "INSERT INTO users (id, tier, username) VALUES ($1, 'free', 'A')", ANNA
    )
    yield connection
    await connection.close()


@pytest.fixture
async def database(database_url: str, owner: Any) -> AsyncIterator[Database]:
    async with Database(sqlalchemy_url(database_url), pool_max=2) as opened:
        yield opened


async def seeds(owner: Any, name: str) -> list[tuple[Any, ...]]:
    """What the seed's query finds, to the letter: `created_at >= NOW() - INTERVAL '30 days'`."""
    query = re.sub(r"since\((\d+)\)", r"now() - interval '\1 days'", SEED[name])
    return [tuple(row) for row in await owner.fetch(query, *([ANNA] if name in OF_A_USER else []))]


async def ours(database: Database, name: str) -> list[tuple[Any, ...]]:
    asked = [ANNA] if name in OF_A_USER else []
    found = await getattr(analytics, name)(database, ADMIN, *asked)
    return [dataclasses.astuple(row) for row in (found if isinstance(found, list) else [found])]


async def logged(owner: Any, database: Database, instants: list[Any]) -> None:
    await owner.execute(LOG, ANNA, instants)
    await owner.execute("INSERT INTO stale_rollups (user_id) VALUES ($1)", ANNA)
    await fold_all(database, seconds_max=60)


async def test_what_the_seeds_queries_count_is_counted(database: Database, owner: Any):
    instants = await owner.fetch("SELECT now() - ago::interval FROM unnest($1::text[]) ago", INSIDE)
    await logged(owner, database, [row[0] for row in instants])

    for name in RANGES:
        assert await ours(database, name) == await seeds(owner, name), name


@pytest.mark.parametrize("name", RANGES)
async def test_more_is_counted_of_the_first_day_alone(database: Database, owner: Any, name: str):
    days, often = RANGES[name]
    first_day = (
        "date_trunc('day', (now() - $1 * interval '1 day') AT TIME ZONE 'UTC') AT TIME ZONE 'UTC'"
    )
    begins = await owner.fetchval(f"SELECT {first_day}", days)
    a_second_before = await owner.fetchval(f"SELECT {first_day} - interval '1 second'", days)
    await logged(owner, database, [await owner.fetchval("SELECT now()"), begins, a_second_before])

    found = sum(row[often] for row in await ours(database, name))
    of_seed = sum(row[often] for row in await seeds(owner, name))

    assert (found, of_seed) == (2, 1)
