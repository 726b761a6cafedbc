"""A way to PostgreSQL or Redis that ends where a test says: at a request, or at the reply to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from pydantic import SecretStr

from service.settings import Settings

__all__ = ["Way", "way_to_postgres", "way_to_redis"]

_TAIL = 200  # bytes of a request that are looked at with the next ones: one may come in two pieces


class Way:
    """Passes everything on, until it is told to end at a place.

    Attributes:
        ended: the place was reached, and the way was cut there once.
    """

    def __init__(self, upstream: Path) -> None:
        self._upstream = upstream
        self._words: tuple[bytes, ...] = ()
        self._after_reply = False
        self._held = False
        self._then: Callable[[], object] = lambda: None
        self.ended = asyncio.Event()

    def end_at(
        self,
        *words: bytes,
        after_reply: bool = False,
        held: bool = False,
        then: Callable[[], object] = lambda: None,
    ) -> None:
        """End at the next request with the last of *words*, on a connection that had the others before.

        It does not arrive; *after_reply*: it is answered, and the reply does not arrive. *held*: the
        connection is not cut. *then* is called first.
        """
        self.ended.clear()
        self._words, self._after_reply, self._held, self._then = words, after_reply, held, then

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        server_reader, server_writer = await asyncio.open_unix_connection(self._upstream)
        watch = _Watch()

        async def ask() -> None:
            while request := await reader.read(1 << 20):
                self._look(watch, request)
                if watch.here and not self._after_reply:
                    return
                server_writer.write(request)

        async def answer() -> None:
            while reply := await server_reader.read(1 << 20):
                if watch.here:
                    return
                writer.write(reply)

        ways = [asyncio.ensure_future(ask()), asyncio.ensure_future(answer())]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            if watch.here:
                self._then()
                self.ended.set()
                if self._held:
                    await reader.read()  # until whoever waits gives up
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            await _close(server_writer)
            await _close(writer)

    def _look(self, watch: _Watch, request: bytes) -> None:
        """Note which words *request* has, and whether the place is reached by it."""
        if self.ended.is_set():
            return
        watch.tail += request
        while self._words[watch.had :] and self._words[watch.had] in watch.tail:
            watch.had += 1
        watch.tail = watch.tail[-_TAIL:]
        watch.here = watch.had == len(self._words) > 0


@dataclass(slots=True)
class _Watch:
    """What a connection has asked for: so many of the words; the end of it; whether this is the place."""

    had: int = 0
    tail: bytes = b""
    here: bool = False


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(OSError):  # whoever was killed says no good-bye
        await writer.wait_closed()


@asynccontextmanager
async def way_to_postgres(
    settings: Settings, directory: Path
) -> AsyncIterator[tuple[Way, Settings]]:
    """A way to the PostgreSQL of *settings*, through *directory*, and settings that take it."""
    url = settings.asyncpg_dsn
    query = parse_qs(urlsplit(url).query)
    (host,), (port,) = query["host"], query["port"]
    name = f".s.PGSQL.{port}"
    way = Way(Path(host) / name)
    async with await asyncio.start_unix_server(way.serve, directory / name):
        taken = SecretStr(url.replace(f"host={host}", f"host={directory}"))
        yield way, settings.model_copy(update={"database_url": taken})


@asynccontextmanager
async def way_to_redis(settings: Settings, directory: Path) -> AsyncIterator[tuple[Way, Settings]]:
    """A way to the Redis of the quotas in *settings*, through *directory*, and settings that take it."""
    way = Way(Path(urlsplit(settings.quota_redis).path))
    async with await asyncio.start_unix_server(way.serve, directory / "redis"):
        taken = SecretStr(f"unix://{directory / 'redis'}")
        yield way, settings.model_copy(update={"quota_redis_url": taken})
