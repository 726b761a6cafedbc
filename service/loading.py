"""Brings users from PostgreSQL into Redis, exactly, while others go on deciding and applying.

The order is what makes it exact (FAULTS 4, policy F): take a token for a user that is not in
Redis, read the log, read PostgreSQL in one snapshot, add what of the log lies behind the
snapshot's position, install if the token still stands. The other order would lose what is applied
between the two reads; without the token an older standing could overwrite a newer one.
"""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID, uuid4

from quota.account import Account
from quota.burndown import Grant
from quota.client import USER_TTL_MS
from quota.period import CALENDAR_PERIODS, Calendar, Window, window_at
from quota.scripts import ScriptCaller, script
from quota.standing import Profile, counter_line, head_text, windows_text
from quota.values import instant_ms, instant_of
from service.database import statement
from service.grants import stored_grant
from service.shards import NoTiersError, entry_number, mend_shard
from service.tiers import stored_rules
from service.usage_log import Entries, read_entries
from service.users import provision_user

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import asyncpg

    from quota.keys import Keys, ShardKeys
    from quota.rules import Rules
    from quota.scripts import Client
    from quota.values import User
    from service.database import Database
    from service.usage_log import Line

__all__ = ["DatabaseLoader"]

_TOKEN_MS = 5_000  # a load takes milliseconds; after this long another loader may try
_TIMEOUT_S = 5.0
_SNAPSHOT_TRIES_MAX = 3  # the position moves back only when PostgreSQL is restored under us
_NO_MAX = 2**62  # a load needs the whole unapplied log, which Redis holds in memory anyway

_Tail = dict[UUID, "list[tuple[Line, int, int]]"]  # line, cost, instant


class DatabaseLoader:
    """Loads users and shards, for a process that has PostgreSQL at hand."""

    def __init__(
        self, database: Database, redis: Client, *, auto_provision: bool, dedupe_ms: int
    ) -> None:
        self._database = database
        self._redis = redis
        self._auto_provision = auto_provision
        self._dedupe_ms = dedupe_ms

    async def load(self, keys: Keys, user: User, *, now_ms: int) -> bool:
        """Bring *user* into Redis; False: there is no such user. See `quota.loading.Loader`."""
        return not await self.load_users(keys, keys.shard_of(user.id), [user], now_ms=now_ms)

    async def load_shard(self, keys: Keys, shard: ShardKeys) -> None:
        """Bring the shard's epoch and rules into Redis."""
        await mend_shard(self._database, self._redis, keys, shard, dedupe_ms=self._dedupe_ms)

    async def load_users(
        self, keys: Keys, shard: ShardKeys, users: Sequence[User], *, now_ms: int
    ) -> list[User]:
        """Bring *users* of one shard into Redis; return those that do not exist.

        A user that somebody else is loading is left to them.
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
            rules = await stored_rules(self._database)
            if rules is None:
                raise NoTiersError
            if self._auto_provision:
                await self._provision(mine, rules, at_ms)
            found, tail = await self._snapshot(shard, [user.id for user in mine])
            standings = [
                _standing(stored, tail[stored.row["id"]], rules, epoch=int(epoch), at_ms=at_ms)
                for stored in found
            ]
            await _install(caller, shard, standings, epoch=epoch, token=token)
            known = {stored.row["id"] for stored in found}
            unknown = [user for user in mine if user.id not in known]
            if unknown:  # who comes next asks PostgreSQL again: the user may have been made
                await self._give_back(shard, unknown)
        except BaseException:
            await self._give_back(shard, mine)  # nobody has to wait for a load that failed
            raise
        else:
            return unknown
        finally:
            await caller.close()

    async def _give_back(self, shard: ShardKeys, users: Sequence[User]) -> None:
        if users:
            await self._redis.unlink(*(shard.token_of(user.id.hex) for user in users))

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

    async def _snapshot(
        self, shard: ShardKeys, user_ids: list[UUID]
    ) -> tuple[list[_Stored], _Tail]:
        """What PostgreSQL has of the users at one position, and what the log has of them behind it."""
        wanted = set(user_ids)
        for _ in range(_SNAPSHOT_TRIES_MAX):
            async with self._database.connection() as connection:
                before = await connection.fetchrow(
                    statement("service", "shard_position"), shard.index
                )
            assert before is not None
            log = await read_entries(
                self._redis,
                shard,
                after=before["last_entry_id"],
                lines_max=_NO_MAX,
                bytes_max=_NO_MAX,
            )
            async with (
                self._database.connection() as connection,
                connection.transaction(isolation="repeatable_read", readonly=True),
            ):
                row = await connection.fetchrow(statement("service", "shard_position"), shard.index)
                assert row is not None
                position = entry_number(row["last_entry_id"])
                if position < entry_number(before["last_entry_id"]):
                    continue  # PostgreSQL was set back meanwhile: the log has to be read from further back
                found = await _read_users(connection, user_ids)
            return found, _tail(log, wanted, behind=position)
        raise RuntimeError(f"the log position of shard {shard.index} keeps moving back")


async def _server_ms(redis: Client) -> int:
    seconds, micros = await redis.time()
    return int(seconds) * 1000 + int(micros) // 1000


class _Stored(NamedTuple):
    """What PostgreSQL has of a user, at one position of the log."""

    row: Any
    counters: list[Any]
    windows: list[Any]
    grants: list[Grant]


async def _read_users(connection: asyncpg.Connection[Any], user_ids: list[UUID]) -> list[_Stored]:
    rows = await connection.fetch(statement("service", "load_users"), user_ids)
    stored = {row["id"]: _Stored(row, [], [], []) for row in rows}
    for row in await connection.fetch(statement("service", "load_counters"), list(stored)):
        stored[row["user_id"]].counters.append(row)
    for row in await connection.fetch(statement("service", "load_windows"), list(stored)):
        stored[row["user_id"]].windows.append(row)
    for row in await connection.fetch(statement("service", "load_grants"), list(stored)):
        stored[row["user_id"]].grants.append(stored_grant(row))
    return list(stored.values())


def _tail(log: Entries, wanted: set[UUID], *, behind: tuple[int, int]) -> _Tail:
    tail: _Tail = defaultdict(list)
    for user_id, line, cost, at_ms, entry_id in log.lines:
        if user_id in wanted and entry_number(entry_id) > behind:
            tail[user_id].append((line, cost, at_ms))
    return tail


def _standing(
    stored: _Stored, tail: Sequence[tuple[Line, int, int]], rules: Rules, *, epoch: int, at_ms: int
) -> tuple[UUID, str, dict[str, str | bytes]]:
    """The profile and the quota hash of a user at *at_ms*."""
    row = stored.row
    calendar = Calendar(row["timezone"], row["anchor_ms"], row["cycle_months"])
    account = Account(stored.grants, row["overage_micro"], at_ms=row["overage_at_ms"])
    for _, cost, then_ms in tail:
        account.repay(at_ms=then_ms)
        account.charge(cost, at_ms=then_ms)
    account.repay(at_ms=at_ms)
    profile = Profile.of(calendar, account, at_ms=at_ms)
    head = head_text(
        epoch=epoch, valid_until_ms=account.valid_until_ms(at_ms=at_ms), tier=row["tier"]
    )
    fields: dict[str, str | bytes] = {
        "h": head,
        "c": str(profile.net),
        "w": windows_text(calendar, at_ms),
    }
    tier = rules.tiers.get(row["tier"])
    for feature, counted in _counted(stored, tail, calendar, at_ms).items():
        limits = (tier.limits_of(feature) if tier else None) or ()
        fields[f"f:{feature}"] = counter_line(limits, counted)
    return row["id"], profile.dump(), fields


def _counted(
    stored: _Stored, tail: Iterable[tuple[Line, int, int]], calendar: Calendar, at_ms: int
) -> dict[str, dict[str, tuple[Window, int]]]:
    """The running window of every period and the units used in it, by feature."""
    running = {per: window_at(per, at_ms, calendar) for per in CALENDAR_PERIODS}
    counted: dict[str, dict[str, tuple[Window, int]]] = {}
    for row in stored.counters:
        counted[row["feature"]] = {
            per: (window, _running(row, per, window)) for per, window in running.items()
        }
    for row in stored.windows:
        _open(counted.setdefault(row["feature"], {}), row["seconds"], row["end_ms"], row["used"])
    for line, _, then_ms in tail:
        by_per = counted.setdefault(line.feature, {})
        for per, window in running.items():
            inside = window.start_ms <= then_ms and (
                window.end_ms is None or then_ms < window.end_ms
            )
            _, units = by_per.get(per, (window, 0))
            by_per[per] = (window, units + (line.amount if inside else 0))
        for seconds, end_ms in line.windows or ():
            _open(by_per, seconds, end_ms, line.amount)
    return counted


def _open(by_per: dict[str, tuple[Window, int]], seconds: int, end_ms: int, units: int) -> None:
    """Count *units* in a window opened by use; of two, the one that ends later runs."""
    per = f"window:{seconds}"
    window, before = by_per.get(per, (None, 0))
    if window is None or window.end_ms is None or end_ms > window.end_ms:
        by_per[per] = (Window(end_ms - seconds * 1000, end_ms), units)
    elif end_ms == window.end_ms:
        by_per[per] = (window, before + units)


def _running(row: Any, per: str, window: Window) -> int:
    if per == "lifetime":
        return int(row["lifetime_used"])
    start: datetime = row[f"{per}_start"]
    return int(row[f"{per}_used"]) if instant_ms(start) == window.start_ms else 0


async def _install(
    caller: ScriptCaller,
    shard: ShardKeys,
    standings: Iterable[tuple[UUID, str, dict[str, str | bytes]]],
    *,
    epoch: bytes,
    token: str,
) -> None:
    names: list[str] = []
    arguments: list[str | bytes | int] = []
    for user_id, profile, fields in standings:
        name = user_id.hex
        names += [shard.user_of(name), shard.grants_of(name), shard.token_of(name)]
        arguments += [
            profile,
            2 * len(fields),
            *(text for field in fields.items() for text in field),
        ]
    if names:
        await caller.call(
            script("install"), [shard.meta, *names], [epoch, token, USER_TTL_MS, *arguments]
        )
