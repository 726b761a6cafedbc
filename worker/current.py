"""Keeps in Redis the terms of this worker and the rules in force, where whoever changed them did not live to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from worker.alone import each_alone

if TYPE_CHECKING:
    from quota.keys import ShardKeys
    from worker.deps import Deps

__all__ = ["keep_redis_current"]


async def keep_redis_current(deps: Deps) -> None:
    """Set the terms and publish the rules, in each shard that has others.

    Raises:
        ShardsFailedError, RedisError
    """
    try:
        await each_alone(deps.keys.shards, lambda shard: _set_terms(deps, shard))
    finally:
        await deps.rules.keep()


async def _set_terms(deps: Deps, shard: ShardKeys) -> None:
    settings = deps.settings
    terms = {
        b"dedupe_ms": settings.dedupe_seconds * 1000,
        b"late_ms": settings.late_grace * 1000,
        b"log_max": settings.log_bytes_max,
    }
    epoch, *found = await deps.redis.hmget(shard.meta, "epoch", *terms)
    if epoch is not None and found != [b"%d" % term for term in terms.values()]:
        await deps.redis.hset(shard.meta, mapping=terms)
