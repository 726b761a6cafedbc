"""Kill -9 a worker at each point of a run, also between PostgreSQL's COMMIT and the worker's hearing of it."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from quota import Quota
from service.settings import Settings
from tests.integration.ways import Way, way_to_postgres, way_to_redis
from worker.deps import Deps

ROOT = Path(__file__).parents[2]
SECONDS_MAX = 60
ROWS = b'COPY "usage_logs"'
COMMIT = b"COMMIT;\0"
UNITS = 40


async def start(settings: Settings) -> asyncio.subprocess.Process:
    environment = {
        **os.environ,
        "DATABASE_URL": settings.asyncpg_dsn,
        "QUOTA_REDIS_URL": settings.quota_redis,
        "QUEUE_REDIS_URL": settings.queue_redis,
        "QUEUE_NAME": settings.queue_name,
        "KEY_PREFIX": settings.key_prefix,
        "METRICS_PORT": "0",
    }
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "worker", cwd=ROOT, env=environment, stderr=asyncio.subprocess.DEVNULL
    )


async def units(deps: Deps) -> tuple[int, int]:
    """Units in the log of usage, and in the counts by feature."""
    async with deps.database.connection() as connection:
        row = await connection.fetchrow(
            "SELECT (SELECT coalesce(sum(amount), 0) FROM usage_logs)::int,"
            " (SELECT coalesce(sum(usage_count), 0) FROM feature_usage)::int"
        )
    assert row is not None
    return row[0], row[1]


async def killed_at(way: Way, taken: Settings, *words: bytes, after_reply: bool) -> None:
    """Start a worker, and kill it when the last of *words* is on its way, or its reply."""
    worker = await start(taken)
    try:
        way.end_at(*words, after_reply=after_reply, then=worker.kill)
        async with asyncio.timeout(SECONDS_MAX):
            await way.ended.wait()
            assert await worker.wait() == -9
    finally:
        if worker.returncode is None:
            worker.kill()
            await worker.wait()


@pytest.mark.parametrize(
    ("words", "after_reply", "written"),
    [
        ([b"usage_shards WHERE shard = $1 FOR UPDATE"], False, False),
        ([b"usage_shards WHERE shard = $1 FOR UPDATE"], True, False),
        ([ROWS], False, False),
        ([ROWS, b"feature_usage"], True, False),
        ([ROWS, b"last_entry_id = $2"], True, False),
        ([ROWS, COMMIT], False, False),
        ([ROWS, COMMIT], True, True),
    ],
    ids=["before the lock", "locked", "before the rows", "between rows", "after the position",
         "before the commit", "after the commit"],
)  # fmt: skip
async def test_a_worker_that_is_killed_there_leaves_all_or_nothing_and_another_goes_on(
    deps: Deps,
    settings: Settings,
    way_dir: Path,
    words: list[bytes],
    after_reply: bool,
    written: bool,
) -> None:
    for number in range(UNITS):
        await deps.quota.record("user-1", "tokens", 1, key=f"key-{number}")

    async with way_to_postgres(settings, way_dir) as (way, taken):
        await killed_at(way, taken, *words, after_reply=after_reply)

    assert await units(deps) == ((UNITS, UNITS) if written else (0, 0))
    await settled(deps)


@pytest.mark.parametrize("after_reply", [False, True], ids=["before", "after"])
async def test_a_worker_that_is_killed_while_it_reads_leaves_the_log_to_another(
    deps: Deps, settings: Settings, way_dir: Path, after_reply: bool
) -> None:
    for number in range(UNITS):
        await deps.quota.record("user-1", "tokens", 1, key=f"key-{number}")

    async with way_to_redis(settings, way_dir) as (way, taken):
        await killed_at(way, taken, b"XRANGE", after_reply=after_reply)

    await settled(deps)


async def settled(deps: Deps) -> None:
    """Another worker applies what is left; a client that asks again is counted once."""
    again = Quota(deps.redis, prefix=deps.keys.prefix, loader=deps.loader)
    async with again:
        repeated = await again.consume("user-1", "tokens", 1, key="key-0")
    async with asyncio.timeout(SECONDS_MAX):
        while (await units(deps))[0] < UNITS:  # PostgreSQL lets go of the dead one's lock soon
            await deps.drain.run(seconds_max=10)

    assert repeated.replayed
    assert await units(deps) == (UNITS, UNITS)
    assert (await deps.quota.check("user-1", "tokens")).used == UNITS
    async with deps.database.connection() as connection:
        assert await connection.fetchval("SELECT count(*) FROM quarantined_records") == 0
