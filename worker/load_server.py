"""Answers the requests of processes without a database, which ask through Redis: see `quota.loading`."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec
import structlog
from redis.exceptions import RedisError

from quota.errors import InvalidValueError, QuotaError, QuotaUnavailableError
from quota.loading import refusal_of
from quota.values import parse_user_id

if TYPE_CHECKING:
    from quota.keys import Keys
    from quota.scripts import Client
    from service.loading import DatabaseLoader
    from service.metrics import Metrics

__all__ = ["LoadServer"]

_REQUESTS_AT_ONCE = 4  # each holds a connection to PostgreSQL for some milliseconds
_REFUNDS_AT_ONCE = 2  # each waits for the log to be applied: loads must not queue up behind them
_REFUNDS_WAITING_MAX = 100  # their askers give up by then
_WAIT_S = 0.25  # for a request; short, because a stop waits for it
_FINISH_SECONDS_MAX = 2  # for the requests that were taken before a stop; a load takes milliseconds
_RETRY_S = 0.5  # after Redis failed
_REPLY_TTL_S = 30  # the asker is gone long before
_log = structlog.get_logger("allotment.loads")


class _Refund(msgspec.Struct):
    user: str | None
    key: str
    amount: int | None
    refund_id: str | None
    now_ms: int


class _Explain(msgspec.Struct):
    user: str
    feature: str
    now_ms: int


class _Ended(msgspec.Struct):
    user: str
    key: str


class _Request(msgspec.Struct):
    """A load of users or of a whole shard, unless it is one of the other three."""

    reply: str
    shard: int = -1
    users: list[str] = []
    now_ms: int = 0
    late: bool = False
    make: bool = True
    refund: _Refund | None = None
    explain: _Explain | None = None
    ended: _Ended | None = None


class LoadServer:
    """Takes requests from Redis and has them carried out, several at a time."""

    def __init__(self, redis: Client, keys: Keys, loader: DatabaseLoader, metrics: Metrics) -> None:
        self._redis = redis
        self._keys = keys
        self._loader = loader
        self._metrics = metrics
        self._places = asyncio.Semaphore(_REQUESTS_AT_ONCE)
        self._refund_places = asyncio.Semaphore(_REFUNDS_AT_ONCE)
        self._refunds_waiting = 0
        self._taken: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Serve until cancelled, then finish what was taken; Redis may come and go meanwhile."""
        try:
            while True:
                await self._places.acquire()
                # A cancelled read may have taken a request all the same: it is let come to its end.
                await asyncio.shield(self._start(self._serve_next()))
        finally:
            await self._finish()

    async def _finish(self) -> None:
        """Wait for what was taken, also when asked again to end: nobody else has these requests."""
        clock = asyncio.get_running_loop().time
        until = clock() + _FINISH_SECONDS_MAX
        while self._taken and clock() < until:
            with suppress(asyncio.CancelledError):
                await asyncio.wait(self._taken, timeout=until - clock())
        for task in self._taken:
            task.cancel()

    def _start(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._taken.add(task)
        task.add_done_callback(self._taken.discard)
        return task

    async def _serve_next(self) -> None:
        """Wait a moment for a request and start on it; the place is free again when it is done."""
        raw: bytes | None = None
        try:
            found = await self._redis.brpop([self._keys.loads], timeout=_WAIT_S)
            raw = None if found is None else found[1]
        except (RedisError, OSError) as error:
            _log.warning("loads.redis_unreachable", error=str(error))
            await asyncio.sleep(_RETRY_S)
        finally:
            if raw is None:
                self._places.release()
        if raw is not None:
            self._start(self._serve_one(raw))

    async def _serve_one(self, raw: bytes) -> None:
        try:
            request = msgspec.json.decode(raw, type=_Request)
        except msgspec.DecodeError as error:
            _log.warning("loads.not_a_request", error=str(error))
            self._places.release()
            return
        if request.refund is None:
            try:
                await self._serve_request(request)
            finally:
                self._places.release()
            return
        self._places.release()
        if self._refunds_waiting >= _REFUNDS_WAITING_MAX:
            _log.warning("loads.refund_dropped", waiting=self._refunds_waiting)
            return
        self._refunds_waiting += 1
        try:
            async with self._refund_places:
                await self._serve_request(request)
        finally:
            self._refunds_waiting -= 1

    async def _serve_request(self, request: _Request) -> None:
        started = time.perf_counter()
        try:
            answer = await self._answer(request)
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.lpush(request.reply, msgspec.json.encode(answer))
                pipe.expire(request.reply, _REPLY_TTL_S)
                await pipe.execute()
        except Exception as error:  # the edge of a task: one failed answer must not end the server
            _log.warning("loads.not_answered", error=str(error))
        finally:
            self._metrics.load_seconds.observe(time.perf_counter() - started)

    async def _answer(self, request: _Request) -> dict[str, Any]:
        try:
            return await self._carry_out(request)
        except QuotaUnavailableError as error:
            return {"error": str(error)}
        except QuotaError as error:
            return refusal_of(error)
        except Exception as error:  # PostgreSQL is down, no tiers, …: the asker is to know
            _log.warning("loads.failed", error=str(error), kind=type(error).__name__)
            return {"error": f"{type(error).__name__}: {error}"}

    async def _carry_out(self, request: _Request) -> dict[str, Any]:
        if request.refund is not None:
            return await self._refund(request.refund)
        if request.explain is not None:
            return await self._explain(request.explain)
        if request.ended is not None:
            return await self._ended(request.ended)
        return await self._load(request)

    async def _load(self, request: _Request) -> dict[str, Any]:
        try:
            shard = self._keys.shards[request.shard] if request.shard >= 0 else None
            users = [parse_user_id(name) for name in request.users]
        except (InvalidValueError, IndexError) as error:
            return {"error": f"not a request of this installation: {error}"}
        if shard is None:
            return {"error": "not a request of this installation: it asks for nothing"}
        if not users:
            await self._loader.load_shard(self._keys, shard)
            return {"unknown": []}
        unknown = await self._loader.load_users(
            self._keys,
            shard,
            users,
            now_ms=request.now_ms,
            late=request.late,
            make=request.make,
        )
        self._metrics.loads.inc(len(users) - len(unknown))
        return {"unknown": [user.text for user in unknown]}

    async def _refund(self, asked: _Refund) -> dict[str, Any]:
        return {
            "answer": await self._loader.refund(
                self._keys,
                None if asked.user is None else parse_user_id(asked.user),
                asked.key,
                amount=asked.amount,
                refund_id=asked.refund_id,
                now_ms=asked.now_ms,
            )
        }

    async def _explain(self, asked: _Explain) -> dict[str, Any]:
        user = parse_user_id(asked.user)
        found = await self._loader.explain(self._keys, user, asked.feature, now_ms=asked.now_ms)
        return {"answer": found}

    async def _ended(self, asked: _Ended) -> dict[str, Any]:
        user = parse_user_id(asked.user)
        return {"answer": await self._loader.ended(self._keys, user, asked.key)}
