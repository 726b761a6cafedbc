"""How a process without a database gets users into Redis: it asks, through Redis, and is answered.

The request goes into one list, the answer comes back on a list of the request's own. Whoever has
PostgreSQL takes requests from there (the worker does). Users that are missed while a request is
under way share the next one, so a crowd of cold calls is few requests.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, Protocol
from uuid import uuid4

from quota.errors import QuotaUnavailableError

if TYPE_CHECKING:
    from quota.keys import Keys, ShardKeys
    from quota.scripts import Client
    from quota.values import User

__all__ = ["Loader", "RequestLoader"]

REQUESTS_MAX = 10_000  # waiting; older ones fall off, their askers ask again
REQUEST_TTL_S = 60  # after which nobody waits any more
_USERS_MAX = 500  # in one request
_SLACK_S = 0.5  # the wait is Redis' own; this is for a Redis that does not come back from it


class Loader(Protocol):
    """Gets users, or a whole shard, from PostgreSQL into Redis."""

    async def load(self, keys: Keys, user: User, *, now_ms: int) -> bool:
        """Bring *user* into Redis as of *now_ms* (0: the server's clock); False: there is no such user."""

    async def load_shard(self, keys: Keys, shard: ShardKeys) -> None:
        """Bring the shard's epoch and the rules into Redis."""


class RequestLoader:
    """Asks a worker through Redis, and waits at most *timeout_s*."""

    def __init__(self, redis: Client, *, timeout_s: float) -> None:
        self._redis = redis
        self._timeout_s = timeout_s
        self._asked: dict[tuple[str, int], asyncio.Future[bool]] = {}
        self._next: dict[tuple[int, int], list[User]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def load(self, keys: Keys, user: User, *, now_ms: int) -> bool:
        """Join the request that is under way for this user, else the next one of the shard.

        Raises:
            QuotaUnavailableError: no worker answered in time.
        """
        future = self._asked.get((user.text, now_ms))
        if future is None:
            loop = asyncio.get_running_loop()
            future = self._asked[user.text, now_ms] = loop.create_future()
            shard = keys.shard_of(user.id).index
            group = self._next.setdefault((shard, now_ms), [])
            group.append(user)
            if len(group) == 1:
                task = loop.create_task(self._ask_for_group(keys, shard, now_ms))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(future)

    async def load_shard(self, keys: Keys, shard: ShardKeys) -> None:
        """Ask for the epoch and the rules of *shard*.

        Raises:
            QuotaUnavailableError: no worker answered in time.
        """
        await self._request(keys, {"shard": shard.index, "users": [], "now_ms": 0})

    async def _ask_for_group(self, keys: Keys, shard: int, now_ms: int) -> None:
        users = self._next.pop((shard, now_ms))
        for start in range(0, len(users), _USERS_MAX):
            names = [user.text for user in users[start : start + _USERS_MAX]]
            futures = {name: self._asked[name, now_ms] for name in names}
            try:
                answer = await self._request(
                    keys, {"shard": shard, "users": names, "now_ms": now_ms}
                )
            except Exception as error:  # the edge of a task: whoever waits has to learn of it
                for future in futures.values():
                    future.set_exception(QuotaUnavailableError(str(error)))
                    future.exception()  # a caller that gave up does not read it
            else:
                unknown = set(answer["unknown"])
                for name, future in futures.items():
                    future.set_result(name not in unknown)
            for name in names:
                del self._asked[name, now_ms]

    async def _request(self, keys: Keys, request: dict[str, Any]) -> dict[str, Any]:
        try:
            async with asyncio.timeout(self._timeout_s + _SLACK_S):
                return await self._asked_and_answered(keys, request)
        except TimeoutError:
            raise QuotaUnavailableError(
                f"Redis did not answer within {self._timeout_s} s"
            ) from None

    async def _asked_and_answered(self, keys: Keys, request: dict[str, Any]) -> dict[str, Any]:
        reply_key = keys.reply_of(uuid4().hex)
        text = json.dumps({**request, "reply": reply_key})
        await self._redis.lpush(keys.loads, text)
        await self._redis.ltrim(keys.loads, 0, REQUESTS_MAX - 1)
        await self._redis.expire(keys.loads, REQUEST_TTL_S)
        found = await self._redis.blpop([reply_key], timeout=self._timeout_s)
        if found is None:
            raise QuotaUnavailableError(
                f"no worker answered a load request within {self._timeout_s} s: is `python -m worker` running?"
            )
        answer: dict[str, Any] = json.loads(found[1])
        if "error" in answer:
            raise QuotaUnavailableError(f"a worker could not load the user: {answer['error']}")
        return answer
