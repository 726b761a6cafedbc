"""Sends records to the admit script: one call a shard for all that wait, in the order they came.

A lone caller is sent at once, in its own coroutine. Who comes while a call is under way waits for
the next one, together with all the others: the busier a process is, the larger its calls.

A call that Redis refuses for what one of its records met is sent again record by record, so that only
that one fails. The script makes every check before its first write, so a refused call has done nothing;
and what is sent again is looked up by its key.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any

from redis.exceptions import (
    AskError,
    ClusterError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)

from quota.rules import Rules
from quota.scripts import ScriptCaller, script
from quota.wire import CHECK, arguments

if TYPE_CHECKING:
    from uuid import UUID

    from quota.keys import ShardKeys
    from quota.scripts import Client
    from quota.wire import Ask

__all__ = ["Answer", "Gate", "NotReadyError", "shards_in"]

LINES_MAX = 400  # in one call: 3 ms of Redis' time, and far below what Lua can unpack
Answer = tuple[int, "list[bytes | int]"]  # now_ms of the server, and a reply for each line
_Waiting = tuple["Ask", "asyncio.Future[Answer]", int]

# What Redis answers to everybody as long as it lasts; inside a script it is only a word of the error.
_OF_THE_SERVER = (
    AskError,
    ClusterError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    TryAgainError,
)
_WORDS_OF_THE_SERVER = re.compile(
    r"\b(?:OOM|LOADING|READONLY|MASTERDOWN|CLUSTERDOWN|NOAUTH|NOPERM|MISCONF|NOREPLICAS|BUSY)\b"
)


NO_RULES = Rules("", {}, {}, {}, version=-1)  # no shard has this version, so the first call says so


class NotReadyError(Exception):
    """The shard is not loaded, or other rules or another number of shards are in force."""

    def __init__(self, word: str, found: int | None = None) -> None:
        super().__init__(word)
        self.word = word
        self.found = found


class Gate:
    """The way into one shard.

    *rules* are those that the shard was last seen to have, *mending* is what is being fetched for it.
    """

    def __init__(self, keys: ShardKeys, redis: Client, *, shards: int, timeout_s: float) -> None:
        self._keys = keys
        self._shards = shards
        self.rules = NO_RULES
        self.mending: asyncio.Future[None] | None = None
        self._caller = ScriptCaller(redis, timeout_s=timeout_s)
        self._script = script("admit")
        self._waiting: list[_Waiting] = []
        self._alone = 0  # how many of those have to be sent one by one
        self._busy = False
        self._drain: asyncio.Task[None] | None = None

    async def admit(self, ask: Ask, *, now_ms: int = 0) -> Answer:
        """What the script answers to *ask* at *now_ms* (0: the server's clock).

        Raises:
            NotReadyError: nothing was done; mend it and ask again.
            RedisError: it is not known whether anything was done; ask again with the same key.
        """
        if self._busy:
            return await self.enqueue(ask, now_ms=now_ms)
        self._busy = True
        try:
            return (await self._call([ask], now_ms))[0]
        except RedisError as error:
            if _of_the_server(error):
                self._give_up(error)
            raise
        finally:
            self._next()

    def enqueue(self, ask: Ask, *, now_ms: int = 0) -> asyncio.Future[Answer]:
        """As `admit`, for callers that bring many at once: the answer of the next call that has room."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((ask, future, now_ms))
        if not self._busy:
            self._busy = True
            self._next()
        return future

    async def close(self) -> None:
        """Finish what waits and give the connection back."""
        while self._drain is not None:
            await self._drain
        await self._caller.close()

    def _next(self) -> None:
        if self._waiting:
            self._drain = asyncio.get_running_loop().create_task(self._send_waiting())
        else:
            self._busy = False
            self._drain = None

    async def _send_waiting(self) -> None:
        try:
            while self._waiting:
                batch = self._take_batch()
                try:
                    answers = await self._call([ask for ask, _, _ in batch], batch[0][2])
                except Exception as error:  # everyone whom it concerns learns of it
                    self._refused(batch, error)
                else:
                    for (_, future, _), answer in zip(batch, answers, strict=True):
                        if not future.done():
                            future.set_result(answer)
        finally:
            self._next()

    def _refused(self, batch: list[_Waiting], error: Exception) -> None:
        if len(batch) > 1 and isinstance(error, ResponseError) and not _of_the_server(error):
            self._waiting = batch + self._waiting
            self._alone = len(batch)
            return
        self._fail(batch, error)
        if _of_the_server(error):
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        """Tell everyone who waits that Redis does not answer: in turn, each would wait its own deadline."""
        waiting, self._waiting, self._alone = self._waiting, [], 0
        self._fail(waiting, error)

    def _fail(self, batch: list[_Waiting], error: Exception) -> None:
        for _, future, _ in batch:
            if not future.done():
                future.set_exception(_copied(error))

    def _take_batch(self) -> list[_Waiting]:
        """The longest run that one call can take: bounded, and of one instant; or who has to be sent alone."""
        if self._alone:
            self._alone -= 1
            return [self._waiting.pop(0)]
        now_ms, lines, taken = self._waiting[0][2], 0, 0
        for ask, _, at_ms in self._waiting:
            lines += len(ask.lines)
            if taken and (lines > LINES_MAX or at_ms != now_ms):
                break
            taken += 1
        batch, self._waiting = self._waiting[:taken], self._waiting[taken:]
        return batch

    async def _call(self, asks: list[Ask], now_ms: int) -> list[Answer]:
        head = self._keys.head

        def make() -> tuple[list[str], list[str | bytes | int]]:
            users: dict[UUID, int] = {}
            if self._caller.resends:
                for ask in asks:
                    ask.repeatable = ask.verb != CHECK
            argv = arguments(
                asks,
                self.rules,
                shards=self._shards,
                now_ms=now_ms,
                users=users,
                place=len(head) + 1,
            )
            return [*head, *[self._keys.user_of(user_id.hex) for user_id in users]], argv

        reply: list[Any] = await self._caller.call_made(self._script, make)
        if reply[0]:
            raise NotReadyError(reply[1].decode(), shards_in(reply[2]) if len(reply) > 2 else None)
        at_ms, replies = reply[1], reply[2]
        if len(asks) == len(replies):
            return [(at_ms, [line]) for line in replies]
        answers, start = [], 0
        for ask in asks:
            end = start + len(ask.lines)
            answers.append((at_ms, replies[start:end]))
            start = end
        return answers


def shards_in(text: bytes | None) -> int | None:
    """The number of shards that meta names; None where it names none, or what can be none."""
    return (
        int(text) if text is not None and text.isdigit() and len(text) < 5 and int(text) else None
    )


def _copied(error: Exception) -> Exception:
    """A new error of the same kind: raising one object in many tasks would chain their tracebacks."""
    try:
        return type(error)(*error.args)
    except TypeError:
        return error


def _of_the_server(error: Exception) -> bool:
    """Whether *error* is of Redis as a whole, so that everybody would meet it."""
    if not isinstance(error, ResponseError):
        return isinstance(error, RedisError)
    return isinstance(error, _OF_THE_SERVER) or bool(_WORDS_OF_THE_SERVER.search(str(error)))
