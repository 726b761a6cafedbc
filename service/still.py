"""Has a user stand still: out of Redis, kept out, and all that was admitted of it applied.

Then there is one state of the user, in PostgreSQL, and a rare change (a grant, a void, a reset, a refund,
another tier) is made on it as one transaction. The next decision loads the user again, and sees the change.

The user is kept out by a token that lives for seconds, and is renewed for as long as the process that made
it lives. A change confirms that it is still there as the last thing before its commit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple
from uuid import uuid4

import structlog
from redis.exceptions import RedisError

from quota.errors import QuotaUnavailableError
from quota.scripts import ScriptCaller, script
from service.database import statement
from service.shards import entry_number
from service.usage_log import NewerVersionError, read_entries

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from quota.keys import Keys, ShardKeys
    from quota.scripts import Client
    from quota.values import User
    from service.database import Database

__all__ = ["STILL", "TOKEN_MS", "Confirm", "Settle", "log_settled", "standing_still"]

STILL = "still:"  # how the token of a stillness begins; freeze.lua and forget.lua know it too
WAIT_S = 8.0  # for others to let the user go, and for the log to be applied
BLOCK_S_MAX = (
    10.0  # a change is a dozen statements; PostgreSQL ends an idle transaction by then too
)
TOKEN_MS = 5_000  # so long a process that died keeps the user away
RENEW_S = 1.0
_SLACK_S = (
    1.0  # the waits end by themselves; this is for a Redis or a PostgreSQL that does not answer
)
_POLL_S = 0.02
_LINES_MAX = 5_000  # of the log, read at once
_TIMEOUT_S = 5.0
_log = structlog.get_logger("allotment.still")

# Applies what the log holds, in this process; None waits for a worker to do it.
Settle = Callable[[], Awaitable[object]] | None
# Raises QuotaUnavailableError unless the user stands still, and will for the seconds of a commit.
Confirm = Callable[[], Awaitable[None]]


@asynccontextmanager
async def standing_still(
    database: Database,
    redis: Client,
    keys: Keys,
    user: User,
    *,
    settle: Settle,
    wait_s: float = WAIT_S,
) -> AsyncIterator[Confirm]:
    """A block in which nothing is decided about *user*, and PostgreSQL has all that was.

    Decisions wait meanwhile, and see what the block committed. A process that dies in the block
    keeps them waiting for `TOKEN_MS` at most. What the block gets is to be called before its commit.

    Raises:
        QuotaUnavailableError: the log is behind and nobody applies it, Redis is down or lost that the
            user stands still, another change of the user takes too long, or the block took longer than
            `BLOCK_S_MAX`.
    """
    still = _Stillness(database, redis, keys.shard_of(user.id), user, settle)
    try:
        try:
            async with asyncio.timeout(wait_s + _SLACK_S):
                await still.begin(wait_s)
        except RedisError as error:
            raise QuotaUnavailableError(str(error)) from error
        except TimeoutError:
            message = f"a user could not be made to stand still within {wait_s + _SLACK_S:g} s"
            raise QuotaUnavailableError(message) from None
        try:
            async with asyncio.timeout(BLOCK_S_MAX) as limit:
                still.limit = limit
                yield still.confirm
        except TimeoutError:
            message = f"the change of a user was given up after {BLOCK_S_MAX:g} s"
            raise QuotaUnavailableError(_LOST if still.lost else message) from None
    finally:
        await still.end()


_LOST = "Redis lost that the user stands still: try again"


class _Place(NamedTuple):
    """How far the log was applied, and how far it goes."""

    applied: str
    end: str

    @property
    def reached(self) -> bool:
        return entry_number(self.end) <= entry_number(self.applied)


class _Stillness:
    """One attempt, with a token of its own; the *limit* of the block ends it when the token is *lost*."""

    def __init__(
        self, database: Database, redis: Client, shard: ShardKeys, user: User, settle: Settle
    ) -> None:
        self._database = database
        self._redis = redis
        self._shard = shard
        self._user = user
        self._settle = settle
        self._token = STILL + uuid4().hex
        self._token_key = shard.token_of(user.id.hex)
        self._frozen = False
        self._keeper: asyncio.Task[None] | None = None
        self._kept_until = 0.0  # by the clock of the loop; the token may live a little longer
        self.limit: asyncio.Timeout | None = None
        self.lost = False

    async def begin(self, wait_s: float) -> None:
        """Freeze the user and wait for what was admitted of it, *wait_s* together."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        # Most of a backlog is applied while the user is still served. It is the others' too, so it
        # need not go to its end.
        end = (await self._place()).end
        await self._applied(end, until=started + wait_s / 2)
        await self._freeze(until=started + wait_s)
        place = await self._place()
        last = None if place.reached else await self._last_entry(place)
        if last is not None and not await self._applied(last, until=started + wait_s):
            raise QuotaUnavailableError(
                f"the usage log of shard {self._shard.index} is behind: what the user used was not "
                f"applied within {wait_s:g} s, is a worker running?"
            )
        await self.confirm()

    async def confirm(self) -> None:
        """See that the user stands still, and will for the life of a token.

        Raises:
            QuotaUnavailableError
        """
        try:
            kept = await self._renew()
        except RedisError as error:
            raise QuotaUnavailableError(str(error)) from error
        if not kept:
            raise QuotaUnavailableError(_LOST)

    async def end(self) -> None:
        """Let the user be loaded again."""
        self.limit = None
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        if not self._frozen:
            return
        try:
            await self._call("release", [self._token_key], [self._token])
        except RedisError as error:  # the change is made: this must not make a failure of it
            _log.warning("still.token_left", error=str(error), expires_in_ms=TOKEN_MS)

    async def _freeze(self, *, until: float) -> None:
        name = self._user.id.hex
        names = [
            f(name) for f in (self._shard.user_of, self._shard.grants_of, self._shard.token_of)
        ]
        clock = asyncio.get_running_loop().time
        self._frozen = True  # as soon as it is asked for: the reply may be lost
        asked_at = clock()
        while not await self._call("freeze", names, [self._token, TOKEN_MS]):
            if clock() >= until:
                raise QuotaUnavailableError("another change of this user is under way: try again")
            await asyncio.sleep(_POLL_S)
            asked_at = clock()
        self._kept_until = asked_at + TOKEN_MS / 1000
        self._keeper = asyncio.create_task(self._keep())

    async def _keep(self) -> None:
        """Renew the token again and again; end the block if it is gone, or may be."""
        clock = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(RENEW_S)
            try:
                async with asyncio.timeout_at(self._kept_until):
                    kept = await self._renew()
            except (RedisError, OSError) as error:  # TimeoutError is one of them
                _log.warning("still.not_renewed", error=str(error))
                kept = clock() < self._kept_until  # there is time to try again
            if not kept:
                break
        self.lost = True
        if self.limit is not None and not self.limit.expired():
            self.limit.reschedule(clock())

    async def _renew(self) -> bool:
        asked_at = asyncio.get_running_loop().time()
        kept = await self._call("renew", [self._token_key], [self._token, TOKEN_MS]) == 1
        if kept:
            self._kept_until = max(self._kept_until, asked_at + TOKEN_MS / 1000)
        return kept

    async def _applied(self, entry_id: str, *, until: float) -> bool:
        return await _applied(self._database, self._shard, entry_id, self._settle, until=until)

    async def _place(self) -> _Place:
        return await _place(self._database, self._redis, self._shard)

    async def _last_entry(self, place: _Place) -> str | None:
        """The last entry that is not applied and has a line of this user, if there is one."""
        found, after = None, place.applied
        while entry_number(after) < entry_number(place.end):
            try:
                run = await read_entries(
                    self._redis, self._shard, after=after, lines_max=_LINES_MAX
                )
            except NewerVersionError as error:
                raise QuotaUnavailableError(str(error)) from error
            if run.last == after:
                break
            for user_id, *_, entry_id in run.lines:
                if user_id == self._user.id:
                    found = entry_id
            after = run.last
        return found

    async def _call(self, name: str, keys: list[str], arguments: list[str | int]) -> int:
        caller = ScriptCaller(self._redis, timeout_s=_TIMEOUT_S)
        try:
            reply: int = await caller.call(script(name), keys, arguments)
        finally:
            await caller.close()
        return reply


async def log_settled(
    database: Database, redis: Client, keys: Keys, *, settle: Settle, wait_s: float = WAIT_S
) -> bool:
    """Wait until all that the log holds now is applied, of every user; False: it was not in time."""
    until = asyncio.get_running_loop().time() + wait_s
    try:
        places = [await _place(database, redis, shard) for shard in keys.shards]
    except RedisError as error:
        raise QuotaUnavailableError(str(error)) from error
    for shard, place in zip(keys.shards, places, strict=True):
        if not await _applied(database, shard, place.end, settle, until=until):
            return False
    return True


async def _place(database: Database, redis: Client, shard: ShardKeys) -> _Place:
    found = await redis.xrevrange(shard.log, count=1)
    return _Place(await _position(database, shard), found[0][0].decode() if found else "0-0")


async def _applied(
    database: Database, shard: ShardKeys, entry_id: str, settle: Settle, *, until: float
) -> bool:
    """Wait until the log is applied up to this entry; False: it was not in time."""
    failure: Exception | None = None
    while True:
        if entry_number(await _position(database, shard)) >= entry_number(entry_id):
            return True
        if asyncio.get_running_loop().time() >= until:
            if failure is not None:
                raise failure
            return False
        if settle is not None:
            try:
                async with asyncio.timeout_at(until):
                    await settle()
            except TimeoutError:
                return False
            except Exception as error:  # maybe of another shard, whose damage is not this user's
                failure = error
            if entry_number(await _position(database, shard)) >= entry_number(entry_id):
                return True
        await asyncio.sleep(_POLL_S)  # somebody else is at it


async def _position(database: Database, shard: ShardKeys) -> str:
    async with database.connection() as connection:
        row = await connection.fetchrow(statement("service", "shard_position"), shard.index)
    assert row is not None, "make_shards made every row at start"
    position: str = row["last_entry_id"]
    return position
