"""A worker that is started before its servers waits for them; one that is set up wrongly ends and says so."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from service.database import Database
from service.embedded import EmbeddedServers
from service.tiers import apply_rules, read_tiers_file
from tests.e2e.test_worker import ROOT, Worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from service.settings import Settings


def environment(settings: Settings, redis: str) -> dict[str, str]:
    return {
        **os.environ,
        "DATABASE_URL": settings.asyncpg_dsn,
        "QUOTA_REDIS_URL": redis,
        "QUEUE_REDIS_URL": redis,
        "KEY_PREFIX": settings.key_prefix,
        "METRICS_PORT": "0",
        "LOG_FORMAT": "json",
    }


@asynccontextmanager
async def started(environment: dict[str, str]) -> AsyncIterator[Worker]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "worker", cwd=ROOT, env=environment, stderr=asyncio.subprocess.PIPE
    )
    try:
        yield Worker(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_a_worker_that_is_started_before_redis_waits_for_it(
    settings: Settings, open_tmp_dir: Path
) -> None:
    async with Database(settings.sqlalchemy_url, pool_max=1) as database:
        await apply_rules(database, read_tiers_file(ROOT / "tiers.toml"))
    async with EmbeddedServers(open_tmp_dir / "late", with_postgres=False) as servers:
        assert servers.redis is not None
        servers.redis.stop()
        async with started(environment(settings, servers.redis_url)) as running:
            assert "Redis at" in await running.says("worker.waits")

            servers.redis.spawn()
            await asyncio.to_thread(servers.redis.wait_ready)

            await running.says("worker.started")


async def test_a_worker_that_waits_ends_when_it_is_told_to(settings: Settings) -> None:
    async with started(environment(settings, "redis://127.0.0.1:1")) as running:
        await running.says("worker.waits")

        running.process.send_signal(signal.SIGTERM)

        assert await running.process.wait() == 0


@pytest.mark.parametrize("name", ["DATABASE_URL", "QUOTA_REDIS_URL"])
async def test_a_worker_with_a_wrong_address_says_so_and_ends(
    settings: Settings, name: str
) -> None:
    scheme = "postgresql" if name == "DATABASE_URL" else "redis"
    given = environment(settings, settings.quota_redis)
    async with started(given | {name: f"{scheme}://no-such-host.invalid/0"}) as running:
        await running.says("cannot be used")

        assert await running.process.wait() == 1
