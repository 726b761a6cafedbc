"""Keeps in Redis the rules in force and the terms of this worker, where whoever changed them did not live to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quota.rules import LINES_FORM
from service.database import statement
from service.tiers import publish_shard, stored_rules
from worker.alone import each_alone

if TYPE_CHECKING:
    from quota.keys import ShardKeys
    from quota.rules import Rules
    from worker.deps import Deps

__all__ = ["keep_redis_current"]


async def keep_redis_current(deps: Deps) -> None:
    """Set the terms and publish the rules, in each shard that has others.

    Raises:
        ShardsFailedError, RedisError
    """
    async with deps.database.connection() as connection:
        version = await connection.fetchval(statement("service", "rules_version"))
    stale: list[ShardKeys] = []

    async def look(shard: ShardKeys) -> None:
        if not await _has_rules(deps, shard, version):
            stale.append(shard)

    try:
        await each_alone(deps.keys.shards, look)
    finally:
        if stale and (rules := await stored_rules(deps.database)) is not None:
            await _publish(deps, stale, rules)


async def _has_rules(deps: Deps, shard: ShardKeys, version: int) -> bool:
    """Whether the shard has the rules in force; its terms are set in passing."""
    settings = deps.settings
    terms = {
        b"dedupe_ms": settings.dedupe_seconds * 1000,
        b"late_ms": settings.late_grace * 1000,
        b"log_max": settings.log_bytes_max,
    }
    found_version, form, epoch, *found = await deps.redis.hmget(
        shard.meta, "rules", "rules_form", "epoch", *terms
    )
    if epoch is not None and found != [b"%d" % term for term in terms.values()]:
        await deps.redis.hset(shard.meta, mapping=terms)
    # Of another form were those that an older version of the service has published.
    return bool(found_version == str(version).encode() and form == b"%d" % LINES_FORM)


async def _publish(deps: Deps, shards: list[ShardKeys], rules: Rules) -> None:
    async def publish(shard: ShardKeys) -> None:
        await publish_shard(deps.redis, shard, rules)

    await each_alone(shards, publish)
