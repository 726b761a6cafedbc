"""A policy that is changed after the start, and a memory that fills, are seen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis
from structlog.testing import capture_logs

from service.database import Database
from service.embedded import EmbeddedServers
from service.tiers import apply_rules, read_tiers_file
from tests.e2e.test_worker import ROOT
from worker.deps import open_deps
from worker.jobs import tidy_logs

if TYPE_CHECKING:
    from pathlib import Path

    from service.settings import Settings
    from worker.deps import Deps

MAX = 10_000_000_000


def shown(deps: Deps, name: str, redis: str) -> float | None:
    return deps.registry.get_sample_value(f"allotment_redis_{name}", {"redis": redis})


@pytest.mark.parametrize("changed", ["quota", "queue"])
async def test_a_redis_that_evicts_is_told_of_each_time(
    settings: Settings, open_tmp_dir: Path, changed: str
) -> None:
    async with EmbeddedServers(open_tmp_dir / "evicts", with_postgres=False) as servers:
        url = SecretStr(servers.redis_url)
        own = settings.model_copy(update={f"{changed}_redis_url": url})
        async with Database(own.sqlalchemy_url, pool_max=1) as database:
            await apply_rules(database, read_tiers_file(ROOT / "tiers.toml"))
        async with open_deps(own) as deps, Redis.from_url(servers.redis_url) as redis:
            await tidy_logs({"deps": deps})
            assert shown(deps, "evicts", changed) == 0

            await redis.config_set("maxmemory", MAX)
            await redis.config_set("maxmemory-policy", "allkeys-lru")
            for _ in range(2):
                with capture_logs() as lines:
                    await tidy_logs({"deps": deps})
                [line] = [line for line in lines if line["event"] == "redis.evicts"]
                assert (line["log_level"], line["redis"]) == ("error", changed)
                assert "allkeys-lru" in line["error"]

            assert shown(deps, "evicts", changed) == 1
            assert shown(deps, "memory_bytes_max", changed) == MAX
            assert 0 < (shown(deps, "memory_bytes", changed) or 0) < MAX


async def test_one_redis_for_both_is_shown_once(deps: Deps) -> None:
    await tidy_logs({"deps": deps})

    assert shown(deps, "memory_bytes", "quota")
    assert shown(deps, "memory_bytes", "queue") is None
