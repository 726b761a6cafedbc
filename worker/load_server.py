"""Answers load requests: processes without a database ask through Redis, see `quota.loading`."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import msgspec
import structlog
from redis.exceptions import RedisError

from quota.errors import InvalidValueError
from quota.values import parse_user_id

if TYPE_CHECKING:
    from quota.keys import Keys
    from quota.scripts import Client
    from service.loading import DatabaseLoader
    from service.metrics import Metrics

__all__ = ["LoadServer"]

_REQUESTS_AT_ONCE = 4  # each holds a connection to PostgreSQL for some milliseconds
_WAIT_S = 1  # for a request; short, so that a shutdown is not held up
_RETRY_S = 0.5  # after Redis failed
_REPLY_TTL_S = 30  # the asker is gone long before
_log = structlog.get_logger("allotment.loads")


class _Request(msgspec.Struct):
    shard: int
    users: list[str]
    now_ms: int
    reply: str


class LoadServer:
    """Takes requests from Redis and has them loaded, several at a time."""

    def __init__(self, redis: Client, keys: Keys, loader: DatabaseLoader, metrics: Metrics) -> None:
        self._redis = redis
        self._keys = keys
        self._loader = loader
        self._metrics = metrics
        self._places = asyncio.Semaphore(_REQUESTS_AT_ONCE)

    async def serve(self) -> None:
        """Serve until cancelled; Redis may come and go meanwhile."""
        async with asyncio.TaskGroup() as group:
            while True:
                await self._places.acquire()
                try:
                    found = await self._redis.brpop([self._keys.loads], timeout=_WAIT_S)
                except (RedisError, OSError) as error:
                    self._places.release()
                    _log.warning("loads.redis_unreachable", error=str(error))
                    await asyncio.sleep(_RETRY_S)
                    continue
                if found is None:
                    self._places.release()
                else:
                    group.create_task(self._serve_one(found[1]))

    async def _serve_one(self, raw: bytes) -> None:
        started = time.perf_counter()
        try:
            request = msgspec.json.decode(raw, type=_Request)
            answer = await self._answer(request)
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.lpush(request.reply, msgspec.json.encode(answer))
                pipe.expire(request.reply, _REPLY_TTL_S)
                await pipe.execute()
        except msgspec.DecodeError as error:
            _log.warning("loads.not_a_request", error=str(error))
        except Exception as error:  # the edge of a task: one failed answer must not end the server
            _log.warning("loads.not_answered", error=str(error))
        finally:
            self._places.release()
            self._metrics.load_seconds.observe(time.perf_counter() - started)

    async def _answer(self, request: _Request) -> dict[str, Any]:
        try:
            shard = self._keys.shards[request.shard]
            if not request.users:
                await self._loader.load_shard(self._keys, shard)
                return {"unknown": []}
            users = [parse_user_id(name) for name in request.users]
            unknown = await self._loader.load_users(self._keys, shard, users, now_ms=request.now_ms)
        except (InvalidValueError, IndexError) as error:
            return {"error": f"not a request of this installation: {error}"}
        except Exception as error:  # PostgreSQL is down, no tiers, …: the asker is to know
            _log.warning("loads.failed", error=str(error), kind=type(error).__name__)
            return {"error": f"{type(error).__name__}: {error}"}
        self._metrics.loads.inc(len(users) - len(unknown))
        return {"unknown": [user.text for user in unknown]}
