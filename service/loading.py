"""Brings users from PostgreSQL into Redis, exactly, while others go on deciding and applying.

The order is what makes it exact (FAULTS 4, policy F): take a token for a user that is not in
Redis, read the log, read PostgreSQL in one snapshot, add what of the log lies behind the
snapshot's position, install if the token still stands. The other order would lose what is applied
between the two reads; without the token an older standing could overwrite a newer one.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from redis.exceptions import RedisError

from quota.errors import QuotaUnavailableError
from quota.loading import LoadGroups
from quota.scripts import ScriptCaller, script
from quota.values import instant_of
from service.changes import Stores
from service.database import DATABASE_ERRORS
from service.ended import ended_hold
from service.explain import stored_standing
from service.installing import Loaded, install
from service.log_index import LogIndex
from service.refunds import LATE_GRACE_MS, refund
from service.shards import NoTiersError, UnknownShardError, mend_shard
from service.snapshot import Late, take_snapshot
from service.standing import Standing, standing_of
from service.tiers import stored_rules
from service.users import provision_user

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from quota.keys import Keys, ShardKeys
    from quota.rules import Rules
    from quota.scripts import Client
    from quota.values import User
    from service.database import Database
    from service.snapshot import Snapshot
    from service.still import Settle

__all__ = ["DatabaseLoader"]

_TOKEN_MS = 5_000  # a load takes milliseconds; after this long another loader may try
_TIMEOUT_S = 5.0
_OUTAGES = (
    *DATABASE_ERRORS,
    RedisError,
    UnknownShardError,
)  # a decision that needs them is `unavailable`


class DatabaseLoader:
    """Loads users and shards, for a process that has PostgreSQL at hand.

    *settle* applies the log in this process, for a refund; without it, one waits for a worker to.
    """

    def __init__(
        self,
        database: Database,
        redis: Client,
        *,
        auto_provision: bool,
        dedupe_ms: int,
        late_ms: int = LATE_GRACE_MS,
        settle: Settle = None,
    ) -> None:
        self._database = database
        self._redis = redis
        self._auto_provision = auto_provision
        self._dedupe_ms = dedupe_ms
        self._late_ms = late_ms
        self._settle = settle
        self._groups = LoadGroups(self._load_told)
        self._indexes: dict[str, LogIndex] = {}  # of each shard, by its log
        self._rules_read: Rules | None = None

    async def load(
        self, keys: Keys, user: User, *, now_ms: int, late: bool = False, make: bool = True
    ) -> bool:
        """Bring *user* into Redis; False: there is no such user. See `quota.loading.Loader`."""
        return await self._groups.join(keys, user, now_ms=now_ms, late=late, make=make)

    async def load_shard(self, keys: Keys, shard: ShardKeys) -> None:
        """Bring the shard's epoch and rules into Redis."""
        with _outages_told():
            await mend_shard(
                self._database,
                self._redis,
                keys,
                shard,
                dedupe_ms=self._dedupe_ms,
                late_ms=self._late_ms,
            )

    async def refund(
        self,
        keys: Keys,
        user: User | None,
        key: str,
        *,
        amount: int | None,
        refund_id: str | None,
        now_ms: int,
    ) -> dict[str, Any]:
        """Give back units of a record; see `quota.loading.Loader`."""
        with _outages_told():
            stores = Stores(
                self._database,
                self._redis,
                keys,
                settle=self._settle,
                grace_ms=self._late_ms,
            )
            refunded = await refund(
                stores,
                user,
                await self._rules(),
                key,
                amount=amount,
                refund_id=refund_id,
                at=instant_of(now_ms) if now_ms else None,
                grace_ms=self._late_ms,
            )
        return refunded.as_dict()

    async def explain(self, keys: Keys, user: User, feature: str, *, now_ms: int) -> dict[str, Any]:
        """What PostgreSQL and the log have of a user and a feature; see `quota.loading.Loader`."""
        with _outages_told():
            return await stored_standing(
                self._database,
                self._redis,
                keys,
                await self._rules(),
                user,
                feature,
                at_ms=now_ms or await _server_ms(self._redis),
                grace_ms=self._late_ms,
                index=self._index_of(keys.shard_of(user.id)),
            )

    async def ended(self, keys: Keys, user: User, key: str) -> dict[str, Any] | None:
        """How a hold ended; see `quota.loading.Loader`."""
        with _outages_told():
            return await ended_hold(self._database, self._redis, keys, user, key)

    async def load_users(
        self,
        keys: Keys,
        shard: ShardKeys,
        users: Sequence[User],
        *,
        now_ms: int,
        late: bool = False,
        make: bool = True,
    ) -> list[User]:
        """Bring *users* of one shard into Redis; return those that do not exist, and are not to be made.

        A user that somebody else is loading, or that stands still for a change, is left to them.
        """
        epoch = await self._redis.hget(shard.meta, "epoch")
        if epoch is None:
            await self.load_shard(keys, shard)
            epoch = await self._redis.hget(shard.meta, "epoch")
        caller, token = ScriptCaller(self._redis, timeout_s=_TIMEOUT_S), uuid4().hex
        mine: list[User] = []
        try:
            mine = await self._take_tokens(caller, shard, users, epoch=epoch, token=token)
            if not mine:
                return []  # others are at it
            at_ms = now_ms or await _server_ms(self._redis)
            asked = Late(at_ms, self._late_ms) if late else None
            make = make and self._auto_provision
            standings = await self._standings(shard, mine, at_ms=at_ms, asked=asked, make=make)
            names = {user.id: user.text for user in mine}
            loaded = [
                Loaded(one, names.pop(one.user_id), int(epoch), at_ms, asked) for one in standings
            ]
            await install(caller, shard, loaded, epoch=epoch, token=token)
            unknown = [user for user in mine if user.id in names]
            # Who comes next asks PostgreSQL again: the user may have been made.
            await _give_back(caller, shard, unknown, token=token)
        except BaseException:
            # Nobody has to wait for a load that failed.
            await _give_back(caller, shard, mine, token=token)
            raise
        else:
            return unknown
        finally:
            await caller.close()

    async def _load_told(
        self,
        keys: Keys,
        shard: ShardKeys,
        users: Sequence[User],
        *,
        now_ms: int,
        late: bool,
        make: bool,
    ) -> list[User]:
        with _outages_told():
            return await self.load_users(keys, shard, users, now_ms=now_ms, late=late, make=make)

    async def _rules(self) -> Rules:
        rules = await stored_rules(self._database)
        if rules is None:
            raise NoTiersError
        return rules

    async def _rules_of(self, snapshot: Snapshot) -> Rules:
        """The rules that were in force at the snapshot, or newer ones; read only when they changed."""
        rules = self._rules_read
        if rules is None or (rules.version, rules.applied_at_ms) != snapshot.rules:
            rules = self._rules_read = await self._rules()
        return rules

    def _index_of(self, shard: ShardKeys) -> LogIndex:
        index = self._indexes.get(shard.log)
        if index is None:
            index = self._indexes[shard.log] = LogIndex(self._database, self._redis, shard)
        return index

    async def _standings(
        self,
        shard: ShardKeys,
        users: Sequence[User],
        *,
        at_ms: int,
        asked: Late | None,
        make: bool,
    ) -> list[Standing]:
        index, ids = self._index_of(shard), [user.id for user in users]
        snapshot = await take_snapshot(self._database, index, shard, ids, late=asked)
        rules = await self._rules_of(snapshot)
        if make and len(snapshot.found) < len({*ids}):
            there = {one.row["id"] for one in snapshot.found}
            await self._provision([user for user in users if user.id not in there], rules, at_ms)
            snapshot = await take_snapshot(self._database, index, shard, ids, late=asked)
        grace_ms = self._late_ms
        return [
            standing_of(one, snapshot.tail[one.row["id"]], rules, at_ms=at_ms, grace_ms=grace_ms)
            for one in snapshot.found
        ]

    async def _take_tokens(
        self,
        caller: ScriptCaller,
        shard: ShardKeys,
        users: Sequence[User],
        *,
        epoch: bytes,
        token: str,
    ) -> list[User]:
        names = [
            name
            for user in users
            for name in (shard.user_of(user.id.hex), shard.token_of(user.id.hex))
        ]
        reply = await caller.call(script("token"), [shard.meta, *names], [epoch, token, _TOKEN_MS])
        if reply[0]:
            return []  # the epoch moved on: the asker tries again
        return [user for user, word in zip(users, reply[1:], strict=True) if word == 0]

    async def _provision(self, users: Iterable[User], rules: Rules, at_ms: int) -> None:
        async with self._database.session() as session:
            for user in sorted(users, key=lambda user: user.id):
                await provision_user(session, user, rules, at=instant_of(at_ms))


@contextmanager
def _outages_told() -> Iterator[None]:
    """Tell what PostgreSQL or Redis fails with as what it is for a decision: no answer now."""
    try:
        yield
    except _OUTAGES as error:
        text = str(error).strip() or "no answer"
        raise QuotaUnavailableError(f"{type(error).__name__}: {text}") from error


async def _server_ms(redis: Client) -> int:
    seconds, micros = await redis.time()
    return int(seconds) * 1000 + int(micros) // 1000


async def _give_back(
    caller: ScriptCaller, shard: ShardKeys, users: Sequence[User], *, token: str
) -> None:
    """Give up the tokens; one that a change has taken over meanwhile stays."""
    if users:
        names = [shard.token_of(user.id.hex) for user in users]
        await caller.call(script("release"), names, [token])
