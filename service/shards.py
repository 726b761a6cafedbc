"""Shards: their epoch and log position in PostgreSQL, and whether Redis still stands on them.

A shard whose Redis side was emptied, replaced or set back is put into a new epoch: scripts refuse
whatever was cached under an older one, and users are loaded again.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import structlog

from quota.scripts import ScriptCaller, script
from service.database import statement
from service.tiers import publish_shard, stored_rules

if TYPE_CHECKING:
    from quota.keys import Keys, ShardKeys
    from quota.scripts import Client
    from service.database import Database

__all__ = ["NoTiersError", "entry_number", "make_shards", "mend_shard", "shard_is_sound"]

_TIMEOUT_S = 5.0
_log = structlog.get_logger("allotment.shards")


class NoTiersError(Exception):
    """No tiers have been applied yet: run `allotment tiers apply tiers.toml`."""

    def __str__(self) -> str:
        return inspect.getdoc(self) or ""


def entry_number(entry_id: str) -> tuple[int, int]:
    """An entry id as numbers, which compare as the log is ordered."""
    ms, _, seq = entry_id.partition("-")
    return int(ms), int(seq or 0)


async def make_shards(database: Database, shards: int) -> None:
    """Make the rows of usage_shards.

    Raises:
        ValueError: there are rows for another number of shards; users would change shards.
    """
    async with database.connection() as connection:
        found = await connection.fetchval(statement("service", "make_shards"), shards)
    if found != shards:
        raise ValueError(
            f"SHARDS is {shards}, but this database was set up with {found}: set SHARDS={found} (it can not be changed)"
        )


async def shard_is_sound(redis: Client, shard: ShardKeys, *, epoch: int, position: str) -> bool:
    """Whether Redis has this epoch, and the entry that was applied last.

    That entry stays in the log until a later one is applied. A Redis that was emptied or set back
    does not have it, however much was admitted since.
    """
    found_epoch, begun_at = await redis.hmget(shard.meta, "epoch", "position")
    if found_epoch != str(epoch).encode():
        return False
    if position == "0-0" or begun_at == position.encode():
        return True
    return bool(await redis.xrange(shard.log, min=position, max=position, count=1))


async def mend_shard(
    database: Database,
    redis: Client,
    keys: Keys,
    shard: ShardKeys,
    *,
    dedupe_ms: int,
    late_ms: int,
) -> bool:
    """Put the shard into a new epoch if Redis does not stand on the stored one; whether it did not.

    The row lock makes one of several menders do it, and keeps the position still meanwhile.

    Raises:
        NoTiersError: there is nothing to decide by.
    """
    rules = await stored_rules(database)
    if rules is None:
        raise NoTiersError
    caller = ScriptCaller(redis, timeout_s=_TIMEOUT_S)
    mended = False
    try:
        async with database.connection() as connection, connection.transaction():
            row = await connection.fetchrow(statement("service", "hold_shard"), shard.index)
            if row is None:
                raise ValueError(
                    f"usage_shards has no shard {shard.index}: SHARDS differs between processes"
                )
            epoch, position = row["epoch"], row["last_entry_id"]
            if epoch == 0 or not await shard_is_sound(redis, shard, epoch=epoch, position=position):
                # Redis is ahead, if PostgreSQL was set back.
                found = int(await redis.hget(shard.meta, "epoch") or 0)
                epoch = await connection.fetchval(
                    statement("service", "next_epoch"), shard.index, found
                )
                mended = True
        if mended:
            begin = [epoch, position, len(keys.shards), dedupe_ms, row["lines_applied"], late_ms]
            await caller.call(script("begin"), [shard.log, shard.meta, shard.tallies], begin)
            log = _log.info if epoch == 1 else _log.warning  # the first one is no loss
            log("shard.epoch_begun", shard=shard.index, epoch=epoch, position=position)
        await publish_shard(redis, shard, rules)
    finally:
        await caller.close()
    return mended
