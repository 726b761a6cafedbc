"""A call whose reply is lost was counted or not; the client finds out, and counts it once."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from quota import Quota
from worker.deps import Deps

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Cutter:
    """A way to Redis that cuts the connection when the next script has been answered, before the answer."""

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self.armed = False
        self.cuts = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        redis_reader, redis_writer = await asyncio.open_unix_connection(self._upstream)
        cutting = False

        async def ask() -> None:
            nonlocal cutting
            while request := await reader.read(1 << 20):
                cutting = cutting or (self.armed and b"EVALSHA" in request)
                redis_writer.write(request)

        async def answer() -> None:
            while reply := await redis_reader.read(1 << 20):
                if cutting:
                    self.armed = False
                    self.cuts += 1
                    return
                writer.write(reply)

        # Both at once: neither a request nor a reply has to come in one piece.
        ways = [asyncio.ensure_future(ask()), asyncio.ensure_future(answer())]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            for one in (redis_writer, writer):
                one.close()
                await one.wait_closed()


@asynccontextmanager
async def cut_off(deps: Deps, path: Path) -> AsyncIterator[tuple[Cutter, Quota]]:
    cutter = Cutter(urlsplit(deps.settings.quota_redis).path)
    server = await asyncio.start_unix_server(cutter.serve, path)
    url = f"unix://{path}"
    async with server, Quota.from_url(url, prefix=deps.keys.prefix, loader=deps.loader) as quota:
        yield cutter, quota


@pytest.mark.parametrize("key", [None, "own"])
async def test_a_lost_reply_is_asked_for_again_and_counted_once(
    deps: Deps, open_tmp_dir: Path, key: str | None
) -> None:
    async with cut_off(deps, open_tmp_dir / "cut.sock") as (cutter, quota):
        await quota.consume("user-1", "tokens", 1)
        cutter.armed = True

        decision = await quota.consume("user-1", "tokens", 5, key=key)

        assert cutter.cuts == 1
        assert decision.replayed
        assert decision.used == 6
        assert (await quota.check("user-1", "tokens")).used == 6
