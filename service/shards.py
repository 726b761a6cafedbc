"""Shards: their epoch and log position in PostgreSQL, and whether Redis still stands on them.

A shard whose Redis side was emptied, replaced or set back is put into a new epoch: scripts refuse
whatever was cached under an older one, and users are loaded again.
"""

from __future__ import annotations

import inspect
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog
from redis.exceptions import ResponseError

from quota.scripts import call_once
from quota.values import instant_of
from service.applied import entry_before, proven_position
from service.database import statement
from service.tiers import publish_shard, stored_rules
from service.usage_log import INSTANT_MS_MAX

if TYPE_CHECKING:
    from quota.keys import Keys, ShardKeys
    from quota.scripts import Client
    from service.database import Database

__all__ = [
    "NoTiersError",
    "UnknownShardError",
    "entry_number",
    "make_shards",
    "mend_shard",
    "shard_is_sound",
]

_TIMEOUT_S = 5.0
_TRIES_MAX = 4  # of beginning an epoch in a log that is admitted into meanwhile
_log = structlog.get_logger("allotment.shards")


class NoTiersError(Exception):
    """No tiers have been applied yet: run `allotment tiers apply tiers.toml`."""

    def __str__(self) -> str:
        return inspect.getdoc(self) or ""


class UnknownShardError(ValueError):
    """There is no such shard: SHARDS differs between processes."""


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


class Footing(NamedTuple):
    """What Redis has of a shard: its epoch (0: none that can be read), and whether all is as PostgreSQL has it.

    *kept_from* is the first entry that was kept, if PostgreSQL stands before what was cut off the log, and
    nobody was told of it yet.
    """

    epoch: int
    sound: bool
    has_entry: bool  # the one that was applied last
    kept_from: str


async def shard_is_sound(
    redis: Client, keys: Keys, shard: ShardKeys, *, epoch: int, position: str
) -> bool:
    """Whether Redis has this epoch, and the entry that was applied last.

    That entry stays in the log until a later one is applied. A Redis that was emptied or set back
    does not have it, however much was admitted since.
    """
    return (await _footing(redis, keys, shard, epoch=epoch, position=position)).sound


async def _footing(
    redis: Client, keys: Keys, shard: ShardKeys, *, epoch: int, position: str
) -> Footing:
    """How Redis stands; what can not be read there is not sound, and raises nothing.

    Raises:
        RedisError: it could not be asked.
    """
    typed, has_entry, last_id, *about = await call_once(
        redis, "stand", shard.head, [position], timeout_s=_TIMEOUT_S
    )
    texts = [text.decode("latin-1") for text in about]
    found, begun_at, shards, kept_from, told = texts
    same = _number(found) == epoch > 0
    behind = _is_entry(kept_from) and entry_number(position) < entry_number(entry_before(kept_from))
    if behind and same and told == kept_from:
        behind = False
    # No entry tells until the position moves. But the log has to be one that goes on behind it.
    reaches = entry_number(last_id.decode() or "0-0") >= entry_number(position)
    stands = bool(has_entry) or (reaches and position in ("0-0", begun_at))
    sound = bool(typed) and same and shards == str(len(keys.shards)) and stands and not behind
    return Footing(_number(found), sound, bool(has_entry), kept_from if behind else "")


async def mend_shard(
    database: Database,
    redis: Client,
    keys: Keys,
    shard: ShardKeys,
    *,
    dedupe_ms: int,
    late_ms: int,
) -> None:
    """Put the shard into a new epoch if Redis does not stand on the stored one, and publish the rules.

    The row lock makes one of several menders do it, and keeps the position still meanwhile. It goes back
    to where the log is known to be applied, if Redis was set back (`service.applied`). Who dies before
    the epoch is begun in Redis leaves one that the next mender goes past.

    Raises:
        NoTiersError: there is nothing to decide by.
        UnknownShardError
    """
    rules = await stored_rules(database)
    if rules is None:
        raise NoTiersError
    for _ in range(_TRIES_MAX):
        begin = await _next_epoch(database, redis, keys, shard)
        if begin is None:
            break
        arguments = [*begin, dedupe_ms, late_ms]
        if await call_once(redis, "begin", shard.head, arguments, timeout_s=_TIMEOUT_S) >= 0:
            break  # else something was admitted into a log that was empty when it was looked at
    await publish_shard(redis, shard, rules)


async def _next_epoch(
    database: Database, redis: Client, keys: Keys, shard: ShardKeys
) -> list[Any] | None:
    """Store a new epoch, and where its log goes on; what begin.lua is to be told of them. None: all is sound."""
    async with database.connection() as connection, connection.transaction():
        row = await connection.fetchrow(statement("service", "hold_shard"), shard.index)
        if row is None:
            raise UnknownShardError(
                f"usage_shards has no shard {shard.index}: SHARDS differs between processes"
            )
        stored: str = row["last_entry_id"]
        footing = await _footing(redis, keys, shard, epoch=row["epoch"], position=stored)
        if footing.sound:
            return None
        position = stored
        if not footing.has_entry:  # Redis may have been set back before it
            with suppress(ResponseError):  # no stream: nothing of it can be read
                position = await proven_position(connection, redis, shard, stored)
        # Redis is ahead, if PostgreSQL was set back.
        epoch = await connection.fetchval(
            statement("service", "next_epoch"), shard.index, footing.epoch, position
        )
    if footing.kept_from:
        _say_missing(shard, stored, footing.kept_from)
    log = _log.info if epoch == 1 else _log.warning  # the first one is no loss
    log("shard.epoch_begun", shard=shard.index, epoch=epoch, position=position)
    return [epoch, position, len(keys.shards), row["lines_applied"], footing.kept_from]


def _say_missing(shard: ShardKeys, position: str, kept_from: str) -> None:
    """Say that PostgreSQL was set back past the end of what the log has."""
    _log.error(
        "shard.records_missing",
        shard=shard.index,
        position=position,
        position_at=_instant(position),
        log_kept_from=kept_from,
        log_kept_from_at=_instant(kept_from),
        advice="PostgreSQL was set back further than REPLAY_SECONDS. What was admitted between these two instants"
        " is in neither: restore a later backup, or take it for lost; see docs/deployment.md",
    )


def _instant(entry_id: str) -> str:
    ms, _ = entry_number(entry_id)
    return instant_of(ms).isoformat() if ms <= INSTANT_MS_MAX else str(ms)


def _number(text: str) -> int:
    """A number that Redis has, 0 if it is none."""
    return int(text) if re.fullmatch(r"[0-9]{1,15}", text) else 0


def _is_entry(text: str) -> bool:
    return re.fullmatch(r"[0-9]{1,20}-[0-9]{1,20}", text) is not None and entry_number(text) > (
        0,
        0,
    )
