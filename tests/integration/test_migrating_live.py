"""The schema goes back and forward while applications admit and a worker applies."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from quota import Decision
from service.database import DATABASE_ERRORS
from service.migrations import downgrade, upgrade
from service.rollups import fold_all
from worker.deps import Deps

SECONDS_MAX = 60
TICK_S = 0.2


async def number(deps: Deps, query: str) -> int:
    async with deps.database.connection() as connection:
        return int(await connection.fetchval(query))


async def applying(deps: Deps, done: asyncio.Event) -> None:
    """A worker's ticks; what fails is tried again at the next."""
    while not done.is_set():
        with suppress(TimeoutError):
            await asyncio.wait_for(done.wait(), TICK_S)
        try:
            await deps.drain.run(seconds_max=1)
        except* DATABASE_ERRORS:
            pass


async def calling(deps: Deps, done: asyncio.Event) -> list[Decision]:
    """An application's calls."""
    decisions = []
    while not done.is_set():
        decisions.append(await deps.quota.consume("user-1", "tokens", 1))
    return decisions


@pytest.mark.parametrize("down_to", ["0003", "0005"])
async def test_no_call_fails_and_all_is_applied_once(deps: Deps, database_url: str, down_to: str):
    await deps.quota.consume("user-1", "tokens", 1)
    await deps.drain.run(seconds_max=5)
    done = asyncio.Event()
    running = asyncio.gather(calling(deps, done), applying(deps, done))
    try:
        async with asyncio.timeout(SECONDS_MAX):
            await downgrade(database_url, down_to)
            await upgrade(database_url)
    finally:
        done.set()
        decisions, _ = await running
    await deps.drain.run(seconds_max=20)
    await fold_all(deps.database, seconds_max=20)

    used = (await deps.quota.check("user-1", "tokens")).used
    assert all(decisions)
    assert used == len(decisions) + 1 > 2
    assert await number(deps, "SELECT sum(amount)::int FROM usage_logs") == used
    assert await number(deps, "SELECT sum(usage_count)::int FROM feature_usage") == used
    assert await number(deps, "SELECT sum(units)::int FROM usage_daily") == used
    assert await number(deps, "SELECT count(*) FROM quarantined_records") == 0
