"""Compares what Redis has of users with PostgreSQL and the log, and drops those that differ.

One consistent view without a lock: Redis is read, then the log, then PostgreSQL in one snapshot, then
Redis again. What did not change in between stood still for all three. A user that did is looked at
again, and left for another time if it does not stand still. A difference counts when two looks find the
same one: then it is no passing state that both reads of Redis happened to see alike.

Nothing is overwritten (FAULTS 5.10): a user that differs leaves Redis, and its next decision loads it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog
from redis.exceptions import RedisError, ResponseError

from service.database import statement
from service.differences import Difference, differences_of, is_outdated, unknown_user
from service.shards import NoTiersError, shard_is_sound
from service.snapshot import read_snapshot
from service.staleness import drop_stale_users
from service.standing import standing_of
from service.tiers import stored_rules
from service.usage_log import NewerVersionError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from uuid import UUID

    from quota.keys import Keys, ShardKeys
    from quota.rules import Rules
    from quota.scripts import Client
    from service.database import Database
    from service.snapshot import Event, Stored

__all__ = ["ABSENT", "BUSY", "DRIFTED", "OUTCOMES", "SYNCED", "Checked", "Reconciler"]

SYNCED = "synced"
DRIFTED = "drifted"
BUSY = "busy"  # it did not stand still, or its shard can not be compared now: another time
ABSENT = "absent"  # not in Redis, or only as what the next decision does not trust and loads anew
OUTCOMES = (SYNCED, DRIFTED, BUSY, ABSENT)
_TRIES_MAX = 4
_PAUSE_S = 0.02  # before the next look: who changed the user is about to drop it
_log = structlog.get_logger("allotment.reconcile")


class Checked(NamedTuple):
    """What came of the comparison of one user."""

    user_id: UUID
    outcome: str
    differences: Sequence[Difference] = ()


class _Seen(NamedTuple):
    """One read of Redis: of the shard its epoch and rules, of each user its hash and profile."""

    about: Sequence[bytes | None]
    users: Mapping[UUID, tuple[Mapping[bytes, bytes], bytes | None]]


class Reconciler:
    """Compares users of one installation.

    A shard of which more than *backlog_max* lines wait to be applied is left alone (None: never):
    each look reads all of them.
    """

    def __init__(
        self,
        database: Database,
        redis: Client,
        keys: Keys,
        *,
        grace_ms: int,
        backlog_max: int | None = None,
        tries_max: int = _TRIES_MAX,
    ) -> None:
        self._database = database
        self._redis = redis
        self._keys = keys
        self._grace_ms = grace_ms
        self._backlog_max = backlog_max
        self._tries_max = tries_max

    async def check(self, user_ids: Iterable[UUID], *, now_ms: int = 0) -> list[Checked]:
        """Compare users as of *now_ms* (0: the server's clock); nothing is changed.

        Raises:
            NoTiersError: there is nothing to compare by.
        """
        rules = await stored_rules(self._database)
        if rules is None:
            raise NoTiersError
        by_shard: dict[int, list[UUID]] = {}
        for user_id in user_ids:
            by_shard.setdefault(self._keys.shard_of(user_id).index, []).append(user_id)
        checked: list[Checked] = []
        for index, ids in sorted(by_shard.items()):
            checked += await self._check_shard(self._keys.shards[index], ids, rules, now_ms)
        return checked

    async def heal(self, checked: Iterable[Checked]) -> int:
        """Drop the users that differ, and write down how all of them stand; return how many were dropped.

        The note of the drop is committed with what is written: who dies in between leaves it to a worker.
        """
        synced = [one.user_id for one in checked if one.outcome == SYNCED]
        drifted = [one for one in checked if one.outcome == DRIFTED]
        async with self._database.connection() as connection:
            if drifted:
                pairs = sorted(
                    {(one.user_id, each.feature) for one in drifted for each in one.differences},
                    key=str,
                )
                async with connection.transaction():
                    await connection.execute(
                        statement("service", "set_healed"),
                        [user_id for user_id, _ in pairs],
                        [feature for _, feature in pairs],
                    )
                    await connection.execute(
                        statement("service", "note_stale_users"), [one.user_id for one in drifted]
                    )
            if synced:
                await connection.execute(statement("service", "set_synced"), synced)
        if drifted:
            await drop_stale_users(self._database, self._redis, self._keys)
        for one in drifted:
            kinds = Counter(each.kind for each in one.differences)
            _log.warning("drift.healed", user=str(one.user_id), figures=dict(kinds))
        return len(drifted)

    async def _check_shard(
        self, shard: ShardKeys, user_ids: Sequence[UUID], rules: Rules, now_ms: int
    ) -> list[Checked]:
        with suppress(ResponseError):  # not a hash: `_why_not` says so
            if not await self._redis.hexists(shard.meta, "epoch"):
                return [Checked(user_id, ABSENT) for user_id in user_ids]
        why_not = await self._why_not(shard)
        if why_not is not None:
            _log.debug("reconcile.shard_left", shard=shard.index, reason=why_not)
            return [Checked(user_id, BUSY) for user_id in user_ids]
        done: list[Checked] = []
        drifts: dict[UUID, dict[tuple[str, str], int]] = {}
        pending = list(user_ids)
        for attempt in range(self._tries_max):
            if attempt:
                await asyncio.sleep(_PAUSE_S)
            again = []
            for one in await self._look(shard, pending, rules, now_ms):
                drift = _drift(one.differences)
                if one.outcome == BUSY or (drift and drifts.get(one.user_id) != drift):
                    again.append(one.user_id)
                    drifts[one.user_id] = drift
                else:
                    done.append(one)
            pending = again
            if not pending:
                break
        return done + [Checked(user_id, BUSY) for user_id in pending]

    async def _why_not(self, shard: ShardKeys) -> str | None:
        """Why the shard's users can not be compared now, if so."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow(statement("service", "shard_state"), shard.index)
        assert row is not None, "make_shards made every row at start"
        if not await shard_is_sound(
            self._redis, self._keys, shard, epoch=row["epoch"], position=row["last_entry_id"]
        ):
            return "Redis was lost: a worker begins a new epoch, and every user is loaded again"
        if self._backlog_max is not None:
            lines = int(await self._redis.hget(shard.tallies, "lines") or 0)
            if lines - row["lines_applied"] > self._backlog_max:
                return "too much of its log is not applied yet"
        return None

    async def _look(
        self, shard: ShardKeys, user_ids: Sequence[UUID], rules: Rules, now_ms: int
    ) -> list[Checked]:
        if not now_ms:
            seconds, micros = await self._redis.time()
            now_ms = int(seconds) * 1000 + int(micros) // 1000
        before = await self._read(shard, user_ids)
        epoch, version = before.about
        if (
            version != b"%d" % rules.version
        ):  # they are on their way to Redis, or these are older ones
            return [Checked(user_id, BUSY) for user_id in user_ids]
        loaded = [
            user_id
            for user_id, (fields, _) in before.users.items()
            if fields.get(b"h", b"").startswith((epoch or b"") + b",")
            and not is_outdated(fields, rules)
        ]
        checked = [Checked(user_id, ABSENT) for user_id in set(user_ids).difference(loaded)]
        if not loaded:
            return checked
        try:
            found, tail = await read_snapshot(self._database, self._redis, shard, loaded)
        except NewerVersionError as error:
            _log.warning("reconcile.newer_version", shard=shard.index, error=str(error))
            return checked + [Checked(user_id, BUSY) for user_id in loaded]
        noted = await self._noted(loaded)
        after = await self._read(shard, loaded)
        stored = {one.row["id"]: one for one in found}
        for user_id in loaded:
            same = after.about == before.about and after.users[user_id] == before.users[user_id]
            if not same or user_id in noted:
                checked.append(Checked(user_id, BUSY))
            else:
                reply = _reply(before, user_id, now_ms)
                events = tail.get(user_id, [])
                checked.append(
                    self._compared(user_id, reply, stored.get(user_id), events, rules, now_ms)
                )
        return checked

    def _compared(
        self,
        user_id: UUID,
        reply: Sequence[Any],
        stored: Stored | None,
        events: Sequence[Event],
        rules: Rules,
        now_ms: int,
    ) -> Checked:
        if stored is None:
            # What waits in the log makes the user when it is applied.
            return Checked(user_id, BUSY) if events else Checked(user_id, DRIFTED, [unknown_user()])
        standing = standing_of(stored, events, rules, at_ms=now_ms, grace_ms=self._grace_ms)
        found = differences_of(reply, standing, at_ms=now_ms)
        return Checked(user_id, DRIFTED if found else SYNCED, found)

    async def _read(self, shard: ShardKeys, user_ids: Sequence[UUID]) -> _Seen:
        """One read; not atomic, for only what two reads find alike is taken."""
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.hmget(shard.meta, "epoch", "rules")
            for user_id in user_ids:
                pipe.hgetall(shard.user_of(user_id.hex))
                pipe.get(shard.grants_of(user_id.hex))
            about, *found = await pipe.execute(raise_on_error=False)
        if isinstance(about, RedisError):
            raise about
        # What is not even of the right type is as if it were not there; a hash without a profile differs.
        hashes = [{} if isinstance(one, RedisError) else one for one in found[::2]]
        profiles = [None if isinstance(one, RedisError) else one for one in found[1::2]]
        return _Seen(about, dict(zip(user_ids, zip(hashes, profiles, strict=True), strict=True)))

    async def _noted(self, user_ids: Sequence[UUID]) -> set[UUID]:
        """Those that changed and were not dropped yet: they differ, and it is known and seen to."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(statement("service", "noted_users"), user_ids)
        return {row["user_id"] for row in rows}


def _reply(seen: _Seen, user_id: UUID, now_ms: int) -> list[Any]:
    """What read.lua would have replied."""
    epoch, version = seen.about
    fields, profile = seen.users[user_id]
    flat = [text for field in fields.items() for text in field]
    return [now_ms, epoch, profile or b"", b"#rules", version, *flat]


def _drift(differences: Iterable[Difference]) -> dict[tuple[str, str], int]:
    """By how much each figure differs: whoever goes on using moves both sides alike."""
    return {(one.kind, one.name): one.drift for one in differences}
