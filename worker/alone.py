"""Does a step for each shard alone: what is damaged in one of them is no reason to leave the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from quota.keys import ShardKeys

__all__ = ["ShardsFailedError", "each_alone"]


class ShardsFailedError(Exception):
    """A step failed for some shards, and was done for the others."""


async def each_alone(
    shards: Sequence[ShardKeys], step: Callable[[ShardKeys], Awaitable[object]]
) -> None:
    """Do *step* for every shard, whichever of them it fails for.

    Raises:
        ShardsFailedError: says which failed, and why; at the end.
        RedisConnectionError, RedisTimeoutError, OSError: Redis is away, for all of them; at once.
    """
    failed: list[str] = []
    for shard in shards:
        try:
            await step(shard)
        except (RedisConnectionError, RedisTimeoutError, OSError):
            raise
        except Exception as error:
            failed.append(f"shard {shard.index}: {type(error).__name__}: {error}")
    if failed:
        raise ShardsFailedError("; ".join(failed))
