"""A COMMIT whose reply does not arrive was made or not; either way everything is written once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from quota.values import parse_user_id
from service.changes import Stores
from service.database import DATABASE_ERRORS, Database
from service.giving import give_grant
from service.rollups import fold_all
from service.settings import Settings
from service.tiers import stored_rules
from tests.integration.ways import Way, way_to_postgres
from worker.deps import Deps, open_deps

SECONDS_MAX = 30
ROWS = b'COPY "usage_logs"'
COMMIT = b"COMMIT;\0"
Over = tuple[Way, Deps]


@pytest.fixture
async def over(deps: Deps, settings: Settings, way_dir: Path) -> AsyncIterator[Over]:
    """Another worker's connections, whose way to PostgreSQL can be cut."""
    async with way_to_postgres(settings, way_dir) as (way, taken), open_deps(taken) as other:
        yield way, other


async def number(database: Database, query: str) -> int:
    async with database.connection() as connection:
        return int(await connection.fetchval(query))


async def units(deps: Deps) -> tuple[int, int]:
    """Units in the log of usage, and in the counts by feature."""
    logged = "SELECT coalesce(sum(amount), 0)::bigint FROM usage_logs"
    counted = "SELECT coalesce(sum(usage_count), 0)::bigint FROM feature_usage"
    return await number(deps.database, logged), await number(deps.database, counted)


@pytest.mark.parametrize(("after_reply", "written"), [(False, 5), (True, 12)])
async def test_a_run_whose_commit_has_no_reply_is_applied_once(
    deps: Deps, over: Over, after_reply: bool, written: int
) -> None:
    way, other = over
    await deps.quota.record("user-1", "tokens", 5)
    await other.drain.run(seconds_max=5)
    await deps.quota.record("user-1", "tokens", 7)
    way.end_at(ROWS, COMMIT, after_reply=after_reply)

    with pytest.RaisesGroup(*[pytest.RaisesExc(DATABASE_ERRORS)]):
        await other.drain.run(seconds_max=5)
    assert way.ended.is_set()
    assert await units(deps) == (written, written)
    async with asyncio.timeout(SECONDS_MAX):
        while (await units(deps))[0] < 12:  # PostgreSQL lets go of the cut one's lock soon
            await other.drain.run(seconds_max=5)

    assert await units(deps) == (12, 12)
    assert (await deps.quota.check("user-1", "tokens")).used == 12
    assert await number(deps.database, "SELECT count(*) FROM quarantined_records") == 0


async def test_a_drain_that_is_cancelled_while_its_commit_is_answered_applies_once(
    deps: Deps, over: Over
) -> None:
    way, other = over
    await deps.quota.record("user-1", "tokens", 7)
    way.end_at(ROWS, COMMIT, after_reply=True, held=True)
    drain = asyncio.create_task(other.drain.run(seconds_max=5))
    async with asyncio.timeout(SECONDS_MAX):
        await way.ended.wait()

        drain.cancel()
        with pytest.raises(asyncio.CancelledError):
            await drain

    assert await units(deps) == (7, 7)
    await other.drain.run(seconds_max=5)
    assert await units(deps) == (7, 7)
    assert (await deps.quota.check("user-1", "tokens")).used == 7


@pytest.mark.parametrize("after_reply", [False, True])
async def test_a_fold_whose_commit_has_no_reply_counts_once(
    deps: Deps, over: Over, after_reply: bool
) -> None:
    way, other = over
    await deps.quota.record("user-1", "tokens", 7)
    await deps.drain.run(seconds_max=5)
    way.end_at(b"usage_daily", COMMIT, after_reply=after_reply)

    with pytest.raises(DATABASE_ERRORS):
        await fold_all(other.database, seconds_max=5)
    assert way.ended.is_set()
    query = "SELECT coalesce(sum(units), 0)::bigint FROM usage_daily"
    assert await number(deps.database, query) == (7 if after_reply else 0)
    async with asyncio.timeout(SECONDS_MAX):
        while await number(deps.database, query) == 0:  # the lock of the cut one goes soon
            await fold_all(other.database, seconds_max=5)
    await fold_all(other.database, seconds_max=5)

    assert await number(deps.database, query) == 7


@pytest.mark.parametrize("after_reply", [False, True])
async def test_a_grant_whose_commit_has_no_reply_is_given_once_when_it_is_given_again(
    deps: Deps, over: Over, after_reply: bool
) -> None:
    way, other = over
    rules = await stored_rules(deps.database)
    assert rules is not None
    stores = Stores(other.database, other.redis, other.keys)
    user = parse_user_id("user-1")

    async def give() -> None:
        await give_grant(stores, user, rules, name="order-1", amount_micro=12_500_000)

    way.end_at(b"credit_grants", COMMIT, after_reply=after_reply)
    with pytest.raises((*DATABASE_ERRORS, asyncpg.PostgresError)):
        await give()
    assert way.ended.is_set()
    await give()

    assert str((await deps.quota.balance("user-1")).credits) == "12.5"
