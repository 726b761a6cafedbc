"""The Lua scripts, and one way to call them on a plain Redis or on Redis Cluster.

On a plain Redis a caller holds its connection: taking one from the pool for each call would cost
more than the script. Cluster clients route by key themselves, so there the client is asked.
"""

from __future__ import annotations

import asyncio
from functools import cache
from hashlib import sha1
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

try:
    from hiredis import pack_command
except ImportError:  # redis-py works without hiredis, only slower
    pack_command = None

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis.asyncio import RedisCluster

    Client = Redis | RedisCluster
    Argument = str | bytes | int

__all__ = ["Script", "ScriptCaller", "script"]


class Script:
    """A Lua file of this package, and the digest by which Redis knows it."""

    def __init__(self, name: str) -> None:
        self.text = (files("quota") / "lua" / f"{name}.lua").read_text(encoding="utf-8")
        # Not a secret: Redis itself names scripts by SHA-1.
        self.sha = sha1(self.text.encode(), usedforsecurity=False).hexdigest()


@cache
def script(name: str) -> Script:
    """The script in `quota/lua/NAME.lua`, read once."""
    return Script(name)


class ScriptCaller:
    """Calls scripts one at a time, within a deadline; not for concurrent use.

    A call whose reply was lost is sent once more: every script is safe to repeat.
    """

    def __init__(self, redis: Client, *, timeout_s: float) -> None:
        self._redis = redis
        self._timeout_s = timeout_s
        self._connection: Any = None

    async def call(self, of: Script, keys: Sequence[str], arguments: Sequence[Argument]) -> Any:
        """The reply of the script.

        Raises:
            RedisError: it could not be reached within the deadline, or refused.
        """
        send = self._send_held if isinstance(self._redis, Redis) else self._redis.execute_command
        try:
            async with asyncio.timeout(self._timeout_s):
                try:
                    return await self._evaluate(send, of, keys, arguments)
                except (RedisConnectionError, RedisTimeoutError):
                    return await self._evaluate(send, of, keys, arguments)
        except TimeoutError:
            raise RedisTimeoutError(f"no answer from Redis within {self._timeout_s} s") from None

    async def _evaluate(self, send: Any, of: Script, keys: Sequence[str], arguments: Sequence[Argument]) -> Any:
        try:
            return await send("EVALSHA", of.sha, len(keys), *keys, *arguments)
        except NoScriptError:
            return await send("EVAL", of.text, len(keys), *keys, *arguments)

    async def _send_held(self, *command: Argument) -> Any:
        connection = self._connection
        if connection is None:
            connection = self._connection = await self._redis.connection_pool.get_connection()
        packed = [pack_command(command)] if pack_command else connection.pack_command(*command)
        try:
            await connection.send_packed_command(packed, check_health=False)
            return await connection.read_response()
        except ResponseError:
            raise
        except BaseException:
            # Cancelled or broken half-way: the next reply on this connection would be another call's.
            await connection.disconnect(nowait=True)
            raise

    async def close(self) -> None:
        """Give the held connection back."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await self._redis.connection_pool.release(connection)
