"""Redis is full, or that of arq's queue is away: a real worker goes on applying and measuring by itself."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

import pytest
from redis.asyncio import Redis

from quota import Quota
from service.database import Database
from service.embedded import EmbeddedServers
from service.tiers import apply_rules, read_tiers_file
from tests.e2e.test_worker import ROOT, WAIT_S_MAX, Worker, applied, worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from service.settings import Settings

USER = "user-1"


@pytest.fixture
async def own_redis(open_tmp_dir: Path) -> AsyncIterator[EmbeddedServers]:
    """A Redis of this test's own, which may be filled and stopped."""
    async with EmbeddedServers(open_tmp_dir / "own-redis", with_postgres=False) as servers:
        yield servers


@pytest.fixture
async def database(settings: Settings) -> AsyncIterator[Database]:
    async with Database(settings.sqlalchemy_url, pool_max=1) as database:
        await apply_rules(database, read_tiers_file(ROOT / "tiers.toml"))
        yield database


def environment(settings: Settings, *, quota: str, queue: str) -> dict[str, str]:
    return {
        **os.environ,
        "DATABASE_URL": settings.asyncpg_dsn,
        "QUOTA_REDIS_URL": quota,
        "QUEUE_REDIS_URL": queue,
        "KEY_PREFIX": settings.key_prefix,
        "METRICS_PORT": "0",
        "LOG_FORMAT": "json",
    }


async def shows(running: Worker, *wanted: str) -> None:
    """Wait until the worker exports these lines."""
    async with asyncio.timeout(WAIT_S_MAX):
        while not set(wanted) <= set((await running.metrics()).splitlines()):
            pass


async def told_to_stop(running: Worker) -> None:
    running.process.send_signal(signal.SIGTERM)
    await running.says("worker.stopped")
    assert await running.process.wait() == 0


async def test_a_full_redis_is_applied_and_measured_and_arq_goes_on_when_there_is_room(
    settings: Settings, database: Database, own_redis: EmbeddedServers
) -> None:
    url = own_redis.redis_url
    async with (
        worker(environment(settings, quota=url, queue=url)) as running,
        Quota.from_url(url, prefix=settings.key_prefix) as quota,
        Redis.from_url(url) as redis,
    ):
        await quota.record(USER, "tokens", 1)
        assert await applied(database, at_least=1) == 1
        running.process.send_signal(signal.SIGSTOP)  # so that all of these are still to be applied
        await asyncio.gather(*(quota.record(USER, "tokens", 1) for _ in range(200)))
        await redis.config_set("maxmemory", 1)
        running.process.send_signal(signal.SIGCONT)

        assert (await quota.consume(USER, "conversations", 1)).code == "unavailable"
        assert await applied(database, at_least=201) == 201
        # The second one is a gauge that is read from the full Redis.
        await shows(
            running,
            "allotment_records_applied_total 201.0",
            "allotment_records_admitted_total 201.0",
        )
        await redis.config_set("maxmemory", 0)
        await running.says("ticks.by_arq")
        await quota.record(USER, "tokens", 1)
        assert await applied(database, at_least=202) == 202

        await redis.config_set("maxmemory", 1)
        await running.says("ticks.by_hand")
        await told_to_stop(running)


async def test_without_the_queue_of_arq_the_log_is_applied_and_folded(
    settings: Settings, database: Database, own_redis: EmbeddedServers
) -> None:
    given = environment(settings, quota=settings.quota_redis, queue=own_redis.redis_url)
    async with (
        worker(given) as running,
        Quota.from_url(settings.quota_redis, prefix=settings.key_prefix) as quota,
    ):
        assert own_redis.redis is not None
        own_redis.redis.stop()
        await running.says("ticks.by_hand")
        await quota.record(USER, "tokens", 1)

        assert await applied(database, at_least=1) == 1
        await shows(running, "allotment_records_applied_total 1.0")
        await shows(running, "allotment_records_folded_total 1.0")

        own_redis.redis.spawn()
        await asyncio.to_thread(own_redis.redis.wait_ready)
        await running.says("ticks.by_arq")
        await told_to_stop(running)
