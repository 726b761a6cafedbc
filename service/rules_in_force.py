"""Rules in force in PostgreSQL and in Redis: the same, whatever either was set back to.

PostgreSQL is the truth. Where Redis has a version that PostgreSQL has not, because that was set back, the stored
rules are stored again under a version past it: a lower one would be taken for an older one, and a process that
has read the rules of one version does not read them again.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import structlog
from redis.exceptions import ResponseError

from quota.rules import LINES_FORM, Rules
from service.database import statement
from service.tiers import apply_rules, publish, renew_rules, same_rules, stored_rules

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from quota.keys import Keys, ShardKeys
    from quota.scripts import Client
    from service.database import Database
    from service.tiers import Ahead

__all__ = ["RulesKeeper", "put_in_force"]

_log = structlog.get_logger("allotment.rules")


async def put_in_force(
    database: Database, redis: Client, keys: Keys, rules: Rules, *, at: datetime | None = None
) -> Rules:
    """Store *rules* and publish them, under a version past all that Redis has; return what is in force.

    Raises:
        InvalidValueError: a tier that users are on is missing.
    """

    applied = await apply_rules(database, rules, at=at, ahead=_looker(redis, keys))
    await publish(redis, keys, applied)
    return applied


def _looker(redis: Client, keys: Keys) -> Ahead:
    """Finds the version that Redis has and that was never stored, or not with this instant; 0 for none."""

    async def ahead(stored: Rules | None) -> int:
        version = 0 if stored is None else stored.version
        applied_at_ms = 0 if stored is None else stored.applied_at_ms
        newest = max([await _ahead(redis, shard, version, applied_at_ms) for shard in keys.shards])
        if newest:
            _log.warning("tiers.redis_was_ahead", redis_version=newest, stored_version=version)
        return newest

    return ahead


class RulesKeeper:
    """Sees to it that Redis has the stored rules, whoever did not live to publish them, whatever damaged them."""

    def __init__(self, database: Database, redis: Client, keys: Keys) -> None:
        self._database = database
        self._redis = redis
        self._keys = keys
        self._sound: dict[int, Mapping[bytes, bytes]] = {}  # what was found right, of each shard
        self._version: tuple[int, int] | None = None  # of that

    async def keep(self) -> None:
        """Compare every shard with PostgreSQL; publish the rules where they are others, or can not be read."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow(statement("service", "rules_version"))
        if row is None:
            return
        version = row["version"], row["applied_at_ms"]
        if version != self._version:
            self._version, self._sound = version, {}
        if all([await self._stands(shard, *version) for shard in self._keys.shards]):
            return
        rules = await stored_rules(self._database)
        assert rules is not None, "versions are never deleted"
        unsound = [shard for shard in self._keys.shards if not await self._is_right(shard, rules)]
        if not unsound:
            return
        # Not the rules that were just read: others may have been applied since.
        current = await renew_rules(self._database, _looker(self._redis, self._keys))
        if current is not None:
            await publish(self._redis, self._keys, current)

    async def _stands(self, shard: ShardKeys, version: int, applied_at_ms: int) -> bool:
        """Whether all is as it was when it was found right."""
        wanted = _wanted(version, applied_at_ms)
        if await _about(self._redis, shard) != wanted or shard.index not in self._sound:
            return False
        return await _lines(self._redis, shard) == self._sound[shard.index]

    async def _is_right(self, shard: ShardKeys, rules: Rules) -> bool:
        if await _about(self._redis, shard) != _wanted(rules.version, rules.applied_at_ms):
            return False
        found = await _lines(self._redis, shard)
        lines = {name.encode(): line.encode() for name, line in rules.lines().items()}
        if {name: line for name, line in found.items() if name != _DOCUMENT} != lines:
            return False
        read = Rules.published(found.get(_DOCUMENT, b""))
        right = (
            read is not None
            and same_rules(read, rules)
            and (read.version, read.applied_at_ms) == (rules.version, rules.applied_at_ms)
        )
        if right:
            self._sound[shard.index] = found
        return right


_DOCUMENT = b"#document"


def _wanted(version: int, applied_at_ms: int) -> list[bytes]:
    return [b"%d" % version, b"%d@%d" % (version, applied_at_ms), b"%d" % LINES_FORM]


async def _about(redis: Client, shard: ShardKeys) -> list[bytes | None]:
    """What meta says of the rules: version, `version@` when it was applied, form; None for what is not there."""
    try:
        return list(await redis.hmget(shard.meta, "rules", "rules_at", "rules_form"))
    except (
        ResponseError
    ):  # not even a hash: a new epoch is begun, and the rules are published with it
        return [None, None, None]


async def _lines(redis: Client, shard: ShardKeys) -> dict[bytes, bytes]:
    try:
        return dict(await redis.hgetall(shard.rules))
    except ResponseError:
        return {}


async def _ahead(redis: Client, shard: ShardKeys, version: int, applied_at_ms: int) -> int:
    """The version that the shard has, if it is none that was stored; else 0."""
    found, found_at, _ = await _about(redis, shard)
    if found is None or re.fullmatch(rb"[0-9]{1,9}", found) is None:
        return 0
    # An older version of the service publishes without saying when.
    told = found_at is not None and found_at.startswith(found + b"@")
    other = told and found_at != b"%d@%d" % (version, applied_at_ms)
    return int(found) if int(found) > version or (int(found) == version and other) else 0
