"""Kill -9 PostgreSQL under load: admission goes on, and all is applied once, without a new worker."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psutil

from cli.chaos.players import WorkerPlayer
from cli.demo.supervisor import kept_running
from quota import Quota
from service.database import Database
from service.embedded import EmbeddedServers
from service.migrations import upgrade
from service.server_process import gone_within
from service.settings import Settings
from service.tiers import apply_rules, read_tiers_file

ROOT = Path(__file__).parents[2]
USERS = [f"user-{number}" for number in range(10)]
SECONDS_MAX = 60


async def record(quota: Quota, count: int) -> None:
    await asyncio.gather(
        *(quota.record(USERS[number % 10], "tokens", 1) for number in range(count))
    )


async def applied(settings: Settings, *, at_least: int) -> tuple[int, int]:
    """Records and units that PostgreSQL has, once it has *at_least* so many."""
    async with (
        Database(settings.sqlalchemy_url, pool_max=1) as database,
        asyncio.timeout(SECONDS_MAX),
    ):
        while True:
            async with database.connection() as connection:
                row = await connection.fetchrow(
                    "SELECT count(*) AS records, (SELECT sum(usage_count) FROM feature_usage)::int AS units "
                    "FROM usage_logs"
                )
            assert row is not None
            if row["records"] >= at_least:
                return row["records"], row["units"]


async def test_postgresql_is_killed_under_load_and_the_worker_goes_on(open_tmp_dir: Path) -> None:
    async with EmbeddedServers(open_tmp_dir / "killed-postgres") as servers:
        settings = Settings(metrics_port=0).served_by(
            database_url=servers.database_url, redis_url=servers.redis_url
        )
        await upgrade(settings.asyncpg_dsn)
        async with Database(settings.sqlalchemy_url, pool_max=1) as database:
            await apply_rules(database, read_tiers_file(ROOT / "tiers.toml"))
        worker = WorkerPlayer(settings, 0, tell=lambda _: None)
        async with kept_running([worker]), Quota.from_url(settings.quota_redis) as quota:
            pid = worker.pid
            await record(quota, 300)
            assert servers.postgres is not None
            assert servers.postgres.process is not None
            family = psutil.Process(servers.postgres.process.pid).children(recursive=True)

            servers.postgres.process.kill()
            await record(quota, 300)
            assert all(gone_within(process, seconds_max=10) for process in family)
            await record(quota, 300)
            servers.postgres.spawn()
            await asyncio.to_thread(servers.postgres.wait_ready)
            await record(quota, 100)

            assert await applied(settings, at_least=1000) == (1000, 1000)
            assert (worker.pid, worker.restarts) == (pid, 0)
            assert (await quota.check("user-1", "tokens")).used == 100
