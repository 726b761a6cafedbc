"""The Lua scripts, and one way to call them on a plain Redis or on Redis Cluster.

On a plain Redis a caller holds its connection: taking one from the pool for each call would cost
more than the script. Cluster clients route by key themselves, so there the client is asked.
"""

from __future__ import annotations

import asyncio
from functools import cache
from hashlib import sha1
from importlib import import_module
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    # redis.asyncio's Redis or RedisCluster. Not by their own annotations: by these a command of an
    # asynchronous client may answer without being awaited.
    Client = Any
    Argument = str | bytes | int
    Call = tuple[Sequence[str], Sequence[Argument]]  # KEYS and ARGV

__all__ = ["Script", "ScriptCaller", "call_once", "script"]


def _packer() -> Callable[[tuple[Argument, ...]], bytes] | None:
    """hiredis' packer, where it is installed: redis-py works without, only slower."""
    try:
        return import_module("hiredis").pack_command  # type: ignore[no-any-return]
    except ImportError:
        return None


_pack = _packer()


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

    A call whose reply was lost is sent once more: every script is safe to repeat, with arguments
    that are made anew where it has to be told.
    """

    def __init__(self, redis: Client, *, timeout_s: float) -> None:
        self._redis = redis
        self._timeout_s = timeout_s
        self._connection: Any = None
        self._socket_timeout: float | None = None  # of the connection, as it is found in the pool
        self.resends = not isinstance(redis, Redis)  # a cluster client sends again by itself

    async def call(self, of: Script, keys: Sequence[str], arguments: Sequence[Argument]) -> Any:
        """The reply of the script.

        Raises:
            RedisError: it could not be reached within the deadline, or refused.
        """
        return await self.call_made(of, lambda: (keys, arguments))

    async def call_made(self, of: Script, make: Callable[[], Call]) -> Any:
        """As `call`, with keys and arguments made by *make* for each time that they are sent.

        Raises:
            RedisError: it could not be reached within the deadline, or refused.
        """
        send = self._redis.execute_command if self.resends else self._send_held
        try:
            async with asyncio.timeout(self._timeout_s):
                try:
                    return await self._evaluate(send, of, *make())
                except (RedisConnectionError, RedisTimeoutError):
                    return await self._evaluate(send, of, *make())
        except TimeoutError:
            raise RedisTimeoutError(f"no answer from Redis within {self._timeout_s} s") from None

    async def _evaluate(
        self, send: Any, of: Script, keys: Sequence[str], arguments: Sequence[Argument]
    ) -> Any:
        try:
            return await send("EVALSHA", of.sha, len(keys), *keys, *arguments)
        except NoScriptError:
            return await send("EVAL", of.text, len(keys), *keys, *arguments)

    async def _send_held(self, *command: Argument) -> Any:
        connection = self._connection
        if connection is None:
            connection = self._connection = await self._redis.connection_pool.get_connection()
            # The deadline of the call is enough; and redis-py bounds a write by asyncio.wait_for, which
            # on Python 3.11 may swallow the cancellation of whoever waits.
            self._socket_timeout, connection.socket_timeout = connection.socket_timeout, None
        packed = [_pack(command)] if _pack else connection.pack_command(*command)
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
            connection.socket_timeout = self._socket_timeout
            await self._redis.connection_pool.release(connection)


async def call_once(
    redis: Client,
    name: str,
    keys: Sequence[str],
    arguments: Sequence[Argument],
    *,
    timeout_s: float,
) -> Any:
    """The reply of the script in `quota/lua/NAME.lua`, for who calls it now and then.

    Raises:
        RedisError: see `ScriptCaller.call`.
    """
    caller = ScriptCaller(redis, timeout_s=timeout_s)
    try:
        return await caller.call(script(name), keys, arguments)
    finally:
        await caller.close()
