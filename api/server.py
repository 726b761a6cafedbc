"""Serves the application on a socket that is already bound, until it is told to stop."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import uvicorn

from api.app import make_app

if TYPE_CHECKING:
    import socket

    from service.settings import Settings

__all__ = ["ApiServer"]

_STOP_SECONDS_MAX = 8  # for running requests; supervisors kill after 10


class ApiServer(uvicorn.Server):
    """A uvicorn that leaves signals to whoever runs it: a worker may live in the same process."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(
            uvicorn.Config(
                make_app(settings),
                log_config=None,  # the logs are set up by the main
                access_log=False,  # paths name users
                lifespan="off",
                server_header=False,
                timeout_graceful_shutdown=_STOP_SECONDS_MAX,
            )
        )
        self._listening = asyncio.Event()

    async def serve_on(self, listener: socket.socket) -> None:
        """Serve until `stop`; running requests are finished."""
        await self.serve(sockets=[listener])

    async def ready(self, *, unless: asyncio.Task[None]) -> None:
        """Return when requests are taken, or when *unless*, which serves them, has ended."""
        listening = asyncio.ensure_future(self._listening.wait())
        await asyncio.wait([listening, unless], return_when=asyncio.FIRST_COMPLETED)
        listening.cancel()

    def stop(self) -> None:
        """Take no more requests and finish those that run."""
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen, and let `ready` know."""
        await super().startup(sockets=sockets)
        self._listening.set()

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Capture none."""
        yield
