"""A whole installation for each test: a database and keys of its own, with tiers in force."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from quota.rules import Rules
from service.database import Database
from service.settings import Settings
from service.tiers import apply_rules, publish
from worker.deps import Deps, open_deps

# apply_tiers(deps, document) -> the rules, in force in PostgreSQL and Redis.
ApplyTiers = Callable[[Deps, dict[str, Any]], Awaitable[Rules]]

_QUEUE_DB = 1  # arq's keys have no prefix of ours, so the queue gets a database that can be emptied

TIERS: dict[str, Any] = {
    "default_tier": "free",
    "features": {
        "image": {"price": "1", "format": {"video": "4"}, "quality": {"high": "2.5"}},
        "unit": {"price": "2"},
    },
    "tiers": {
        "free": {
            "limits": {
                "event": [
                    {"max": 100, "per": "day"},
                    {"max": 150, "per": "month", "mode": "soft"},
                ],
                "image": {"max": "unlimited", "per": "month"},
                "tokens": {"max": "unlimited", "per": "lifetime"},
                "unit": {"max": 10, "per": "month"},
            }
        },
        "pro": {"overdraft": True, "limits": {"*": {"max": 1000, "per": "month"}}},
    },
}


@pytest.fixture
async def settings(database_url: str, redis_url: str) -> AsyncIterator[Settings]:
    """The settings of this test alone; every key it makes in Redis is deleted afterwards."""
    prefix = f"test-{uuid4().hex}"
    yield Settings(
        database_url=SecretStr(database_url),
        redis_url=SecretStr(redis_url),
        quota_redis_url=SecretStr(redis_url),
        queue_redis_url=SecretStr(_with_db(redis_url, _QUEUE_DB)),
        key_prefix=prefix,
        metrics_port=0,
    )
    async with Redis.from_url(redis_url) as redis:
        async for key in redis.scan_iter(f"{prefix}:*", count=1000):
            await redis.unlink(key)
    async with Redis.from_url(_with_db(redis_url, _QUEUE_DB)) as queue:
        await queue.flushdb()


def _with_db(url: str, number: int) -> str:
    if urlsplit(url).scheme == "unix":
        return f"{url}?db={number}"
    return urlsplit(url)._replace(path=f"/{number}").geturl()


@pytest.fixture
async def deps(settings: Settings) -> AsyncIterator[Deps]:
    """What a worker works with, on `TIERS`."""
    async with Database(settings.sqlalchemy_url, pool_max=1) as database:
        await apply_rules(database, Rules.from_document(TIERS))
    async with open_deps(settings) as opened:
        yield opened


@pytest.fixture(scope="session")
def apply_tiers() -> ApplyTiers:
    """A function that puts other tiers in force, as `allotment tiers apply` does."""

    async def apply(deps: Deps, document: dict[str, Any]) -> Rules:
        rules = await apply_rules(deps.database, Rules.from_document(document))
        await publish(deps.redis, deps.keys, rules)
        return rules

    return apply
