"""How a process without a database reaches what PostgreSQL has: it asks, through Redis, and is answered.

The request goes into one list, the answer comes back on a list of the request's own. Whoever has
PostgreSQL takes requests from there (the worker does). Users that are missed while a request is
under way share the next one, so a crowd of cold calls is few requests.

A request that was refused is answered with the refusal, which is raised here as if it had been
found in this process; one that nobody could carry out is `QuotaUnavailableError`.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, Protocol
from uuid import uuid4

from redis.exceptions import TimeoutError as RedisTimeoutError

from quota.errors import (
    InvalidValueError,
    KeyConflictError,
    QuotaError,
    QuotaUnavailableError,
    UnknownKeyError,
    UnknownUserError,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from quota.keys import Keys, ShardKeys
    from quota.scripts import Client
    from quota.values import User

__all__ = ["REFUSALS", "LoadGroups", "Loader", "RequestLoader", "refusal_of"]

# What a request can be refused with; each takes the arguments it was made with.
REFUSALS: dict[str, type[QuotaError]] = {
    kind.code: kind
    for kind in (InvalidValueError, KeyConflictError, UnknownKeyError, UnknownUserError)
}

REQUESTS_MAX = 10_000  # waiting; older ones fall off, their askers ask again
REQUEST_TTL_S = 60  # after which nobody waits any more
_USERS_MAX = 500  # in one request
REFUND_TIMEOUT_S = 12.0  # a user may have to stand still for one, until the log is applied
_WAIT_S_MAX = 2.0  # of one blocking read: a client's socket may time out after five
_SLACK_S = 0.5  # the wait is Redis' own; this is for a Redis that does not come back from it


class Loader(Protocol):
    """Gets users, or a whole shard, from PostgreSQL into Redis; and what only PostgreSQL can answer."""

    async def load(
        self, keys: Keys, user: User, *, now_ms: int, late: bool = False, make: bool = True
    ) -> bool:
        """Bring *user* into Redis as of *now_ms* (0: the server's clock); False: there is no such user.

        With *late* the counters of the periods that ended last come along, for records of then. Where users
        are made on first use, one is made unless *make* is false: to look at a user is no use.
        """

    async def load_shard(self, keys: Keys, shard: ShardKeys) -> None:
        """Bring the shard's epoch and the rules into Redis."""

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
        """Give back *amount* units of the record *key* (None: all); what came of it, as JSON values.

        Raises:
            UnknownKeyError, UnknownUserError, InvalidValueError: nothing was given back.
        """

    async def explain(self, keys: Keys, user: User, feature: str, *, now_ms: int) -> dict[str, Any]:
        """What PostgreSQL and the log have of *user* and *feature*; see `quota.explain.Stored`.

        Raises:
            UnknownUserError
        """

    async def ended(self, keys: Keys, user: User, key: str) -> dict[str, Any] | None:
        """How the hold *key* of *user* ended: status, amount, cost_micro; None: it is open, or there is none."""


def refusal_of(error: QuotaError) -> dict[str, Any]:
    """The answer that says *error*, for `RequestLoader` to raise again."""
    field = {"field": error.field} if isinstance(error, InvalidValueError) else {}
    return {"refused": {"code": error.code, **field, "args": [*map(_plain, error.args)]}}


def _plain(argument: object) -> object:
    return argument if argument is None or isinstance(argument, (str, int)) else repr(argument)


_Kind = tuple[int, int, bool, bool]  # of a load: shard, now_ms, late, make


class LoadSome(Protocol):
    """Brings users of one shard into Redis, and answers those that do not exist."""

    async def __call__(
        self,
        keys: Keys,
        shard: ShardKeys,
        users: Sequence[User],
        *,
        now_ms: int,
        late: bool,
        make: bool,
    ) -> list[User]: ...


class LoadGroups:
    """Has users that are missed at the same time loaded together, and each of them once.

    *load* brings some users of a shard into Redis, and answers those that do not exist.
    """

    def __init__(self, load: LoadSome) -> None:
        self._load = load
        self._asked: dict[tuple[str, _Kind], asyncio.Future[bool]] = {}
        self._next: dict[_Kind, list[User]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def join(self, keys: Keys, user: User, *, now_ms: int, late: bool, make: bool) -> bool:
        """Join the load that is under way for this user, else the next one of the shard; False: no such user.

        Raises:
            QuotaError: the load failed.
        """
        kind = (keys.shard_of(user.id).index, now_ms, late, make)
        future = self._asked.get((user.text, kind))
        if future is None:
            loop = asyncio.get_running_loop()
            future = self._asked[user.text, kind] = loop.create_future()
            group = self._next.setdefault(kind, [])
            group.append(user)
            if len(group) == 1:
                task = loop.create_task(self._load_group(keys, kind))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(future)

    async def _load_group(self, keys: Keys, kind: _Kind) -> None:
        users = self._next.pop(kind)
        shard, now_ms, late, make = kind
        for start in range(0, len(users), _USERS_MAX):
            some = users[start : start + _USERS_MAX]
            futures = {user.text: self._asked[user.text, kind] for user in some}
            try:
                unknown = await self._load(
                    keys, keys.shards[shard], some, now_ms=now_ms, late=late, make=make
                )
            except Exception as error:  # the edge of a task: whoever waits has to learn of it
                for future in futures.values():
                    told = QuotaUnavailableError(str(error))
                    told.__cause__ = error  # tells an outage of Redis from one of PostgreSQL
                    future.set_exception(told)
                    future.exception()  # a caller that gave up does not read it
            else:
                gone = {user.text for user in unknown}
                for name, future in futures.items():
                    future.set_result(name not in gone)
            for user in some:
                del self._asked[user.text, kind]


class RequestLoader:
    """Asks a worker through Redis, and waits at most *timeout_s*, for a refund *refund_timeout_s*."""

    def __init__(
        self, redis: Client, *, timeout_s: float, refund_timeout_s: float = REFUND_TIMEOUT_S
    ) -> None:
        self._redis = redis
        self._timeout_s = timeout_s
        self._refund_timeout_s = refund_timeout_s
        self._groups = LoadGroups(self._load_some)

    async def load(
        self, keys: Keys, user: User, *, now_ms: int, late: bool = False, make: bool = True
    ) -> bool:
        """Join the request that is under way for this user, else the next one of the shard.

        Raises:
            QuotaUnavailableError: no worker answered in time.
        """
        return await self._groups.join(keys, user, now_ms=now_ms, late=late, make=make)

    async def load_shard(self, keys: Keys, shard: ShardKeys) -> None:
        """Ask for the epoch and the rules of *shard*.

        Raises:
            QuotaUnavailableError: no worker answered in time.
        """
        await self._request(keys, {"shard": shard.index, "users": [], "now_ms": 0})

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
        """Have a worker refund; see `Loader.refund`.

        Raises:
            QuotaUnavailableError: no worker answered in time. If one was at it, the units may be given
                back all the same: ask again with the same *refund_id*.
        """
        asked = {
            "user": None if user is None else user.text,
            "key": key,
            "amount": amount,
            "refund_id": refund_id,
            "now_ms": now_ms,
        }
        request = {"refund": asked}
        answer = await self._request(keys, request, withdraw=True, timeout_s=self._refund_timeout_s)
        found: dict[str, Any] = _answered(answer)
        return found

    async def explain(self, keys: Keys, user: User, feature: str, *, now_ms: int) -> dict[str, Any]:
        """Ask a worker what is stored; see `Loader.explain`.

        Raises:
            QuotaUnavailableError: no worker answered in time.
        """
        asked = {"user": user.text, "feature": feature, "now_ms": now_ms}
        found: dict[str, Any] = _answered(
            await self._request(keys, {"explain": asked}, withdraw=True)
        )
        return found

    async def ended(self, keys: Keys, user: User, key: str) -> dict[str, Any] | None:
        """Ask a worker how a hold ended; see `Loader.ended`.

        Raises:
            QuotaUnavailableError: no worker answered in time.
        """
        asked = {"user": user.text, "key": key}
        found: dict[str, Any] | None = _answered(
            await self._request(keys, {"ended": asked}, withdraw=True)
        )
        return found

    async def _load_some(
        self,
        keys: Keys,
        shard: ShardKeys,
        users: Sequence[User],
        *,
        now_ms: int,
        late: bool,
        make: bool,
    ) -> list[User]:
        names = [user.text for user in users]
        request = {"shard": shard.index, "users": names, "now_ms": now_ms, "late": late}
        if not make:  # an older worker does not know it, and makes the user
            request["make"] = False
        unknown = set((await self._request(keys, request))["unknown"])
        return [user for user in users if user.text in unknown]

    async def _request(
        self,
        keys: Keys,
        request: dict[str, Any],
        *,
        withdraw: bool = False,
        timeout_s: float | None = None,
    ) -> dict[str, Any]:
        timeout_s = timeout_s or self._timeout_s
        try:
            async with asyncio.timeout(timeout_s + _SLACK_S):
                return await self._asked_and_answered(
                    keys, request, withdraw=withdraw, timeout_s=timeout_s
                )
        except TimeoutError:
            reason = f"Redis did not answer within {timeout_s} s"
            raise QuotaUnavailableError(reason) from RedisTimeoutError(reason)

    async def _asked_and_answered(
        self, keys: Keys, request: dict[str, Any], *, withdraw: bool, timeout_s: float
    ) -> dict[str, Any]:
        reply_key = keys.reply_of(uuid4().hex)
        text = json.dumps({**request, "reply": reply_key})
        await self._redis.lpush(keys.loads, text)
        await self._redis.ltrim(keys.loads, 0, REQUESTS_MAX - 1)
        await self._redis.expire(keys.loads, REQUEST_TTL_S)
        found, waited_s = None, 0.0
        while found is None and waited_s < timeout_s:
            wait_s = min(timeout_s - waited_s, _WAIT_S_MAX)
            found = await self._redis.blpop([reply_key], timeout=wait_s)
            waited_s += wait_s
        if found is None:
            if (
                withdraw
            ):  # a worker that comes later shall not do what the caller was told was not done
                await self._redis.lrem(keys.loads, 1, text)
            raise QuotaUnavailableError(
                f"no worker answered a request within {timeout_s} s: is `python -m worker` running?"
            )
        answer: dict[str, Any] = json.loads(found[1])
        if "error" in answer:
            raise QuotaUnavailableError(f"a worker could not answer: {answer['error']}")
        return answer


def _answered(answer: dict[str, Any]) -> Any:
    """What was asked for; raises what it was refused with."""
    if "refused" in answer:
        refused = answer["refused"]
        raise REFUSALS.get(refused["code"], QuotaUnavailableError)(*refused["args"])
    return answer["answer"]
