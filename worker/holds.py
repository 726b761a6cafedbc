"""Ends the holds that nobody committed or released in time.

A decision about their user ends them too; this is for users that make none.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog
from redis.exceptions import ResponseError

from quota.errors import UnknownUserError
from quota.values import instant_of, parse_user_id
from service.database import statement

if TYPE_CHECKING:
    from quota.keys import ShardKeys
    from worker.deps import Deps

__all__ = ["expire_holds"]

_log = structlog.get_logger("allotment.holds")
_USERS_MAX = 500  # of a shard in one round; the next one is a second later
_AT_ONCE = 32
_GRACE_S = 30  # after which PostgreSQL is asked for holds that Redis no longer knows


async def expire_holds(deps: Deps, *, now_ms: int = 0) -> int:
    """End every hold that is over at *now_ms* (0: the server's clock); return of how many users."""
    if not now_ms:
        seconds, micros = await deps.redis.time()
        now_ms = int(seconds) * 1000 + int(micros) // 1000
    places = asyncio.Semaphore(_AT_ONCE)
    due = {name for shard in deps.keys.shards for name in await _due(deps, shard, now_ms)}
    due |= await _forgotten(deps, now_ms)
    ended = await asyncio.gather(
        *(_expire(deps, name, now_ms, places) for name in sorted(due)), return_exceptions=True
    )
    for name, error in zip(sorted(due), ended, strict=True):
        if isinstance(error, Exception):  # the others go on; this one is tried again
            _log.warning("hold.not_expired", kind=type(error).__name__, error=str(error), user=name)
    return len(due)


async def _due(deps: Deps, shard: ShardKeys, now_ms: int) -> list[str]:
    try:
        found = await deps.redis.zrangebyscore(shard.due, "-inf", now_ms, start=0, num=_USERS_MAX)
    except ResponseError:  # no sorted set: the drain begins a new epoch, PostgreSQL knows the holds
        return []
    return [name.decode(errors="replace") for name in found]


async def _forgotten(deps: Deps, now_ms: int) -> set[str]:
    """Users with a hold that is over in PostgreSQL and unknown to Redis, which was lost."""
    before = instant_of(now_ms - _GRACE_S * 1000)
    async with deps.database.connection() as connection:
        rows = await connection.fetch(statement("worker", "overdue_holds"), before, _USERS_MAX)
    return {row["name"] for row in rows}


async def _expire(deps: Deps, name: str, now_ms: int, places: asyncio.Semaphore) -> None:
    async with places:
        try:
            await deps.quota.roll(name, now=instant_of(now_ms))
        except UnknownUserError:  # erased meanwhile
            await deps.redis.zrem(deps.keys.shard_of(parse_user_id(name).id).due, name)
