"""Watches for operators how full Redis is, and that it would rather refuse than forget."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import structlog
from redis.asyncio import Redis

from service.server_checks import eviction_complaint
from worker.deps import SOCKET_TIMEOUT_S

if TYPE_CHECKING:
    from quota.scripts import Client
    from worker.deps import Deps

__all__ = ["watch_redis"]

_log = structlog.get_logger("allotment.redis")


async def watch_redis(deps: Deps) -> None:
    """Bring the gauges of memory up to date, and say it each time that a Redis is found to evict.

    A worker does not start on one that does; this is for a policy that is changed afterwards.

    Raises:
        RedisError, OSError
    """
    await _watch(deps, "quota", deps.redis)
    queue = deps.settings.queue_redis
    if _server(queue) != _server(deps.settings.quota_redis):
        async with Redis.from_url(queue, socket_timeout=SOCKET_TIMEOUT_S) as redis:
            await _watch(deps, "queue", redis)


def _server(url: str) -> str:
    """What of an address names the server: not the number of a database."""
    parts = urlsplit(url)
    return parts.path if parts.scheme == "unix" else parts.netloc


async def _watch(deps: Deps, use: str, redis: Client) -> None:
    facts = await redis.info("memory")  # hosted servers often forbid CONFIG
    deps.metrics.redis_bytes.labels(use).set(facts["used_memory"])
    deps.metrics.redis_bytes_max.labels(use).set(facts.get("maxmemory", 0))
    complaint = eviction_complaint(facts)
    deps.metrics.redis_evicts.labels(use).set(complaint is not None)
    if complaint is not None:
        _log.error("redis.evicts", redis=use, error=f"Redis {complaint}")
