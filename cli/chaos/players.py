"""The processes of a run that are killed and paused, each started again whenever it ends."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import TYPE_CHECKING

from cli.demo.supervisor import Supervisor

if TYPE_CHECKING:
    from collections.abc import Callable

    from cli.chaos.producer import Part
    from service.settings import Settings

__all__ = ["Player", "ProducerPlayer", "WorkerPlayer"]

_AGAIN_S = 0.3  # before one that could not start, because its servers are away, is tried again
_READY_SECONDS_MAX = 60.0


class Player(Supervisor):
    """A process that may be killed at any time."""

    async def _start(self) -> None:
        self.ready.clear()
        await super()._start()

    def send(self, number: signal.Signals) -> None:
        """Send a signal, if there is anybody to get it."""
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)

    async def ended(self, *, seconds_max: float) -> bool:
        """Whether the process that runs now ends in time."""
        process = self._process
        assert process is not None, "not started"
        try:
            await asyncio.wait_for(process.wait(), seconds_max)
        except TimeoutError:
            return False
        return True

    async def is_ready(self) -> bool:
        """Whether it got ready in time."""
        try:
            await asyncio.wait_for(self.ready.wait(), _READY_SECONDS_MAX)
        except TimeoutError:
            return False
        return True

    async def stop(self) -> None:
        """End it at once: whatever it should have finished, it was asked to finish before."""
        self.stopping = True
        self.send(signal.SIGKILL)  # also to one that is paused
        if self._process is not None:
            await self._process.wait()


class WorkerPlayer(Player):
    """A worker: where a server is away at its start it ends, and is started again."""

    def __init__(self, settings: Settings, number: int, *, tell: Callable[[str], object]) -> None:
        super().__init__(settings, tell=tell, name=f"worker {number}")
        self.exits = 0  # of its own accord, after it was ready

    async def _watch(self) -> int:
        code = await super()._watch()
        if code >= 0 and not self.stopping and not self.ready.is_set():
            await asyncio.sleep(_AGAIN_S)
        return code

    def may_restart(self, code: int) -> bool:
        """Always; but one that had begun to work must not end by itself."""
        if code > 0 and self.ready.is_set():
            self.exits += 1
            self._tell(f"{self.name} ended by itself: {self.last_words}")
        return True


class ProducerPlayer(Player):
    """A producer: it ends when it was told to finish, and never by itself."""

    def __init__(self, settings: Settings, part: Part, *, tell: Callable[[str], object]) -> None:
        super().__init__(settings, tell=tell, name=f"producer {part.producer}", words=part.words())
        self.part = part

    async def finish(self, *, seconds_max: float) -> bool:
        """Have it repeat what has no answer; whether it ended in time."""
        if not await self.is_ready():
            return False
        self.stopping = True
        self.send(signal.SIGTERM)
        return await self.ended(seconds_max=seconds_max)

    def may_restart(self, code: int) -> bool:
        """Only when it was killed: an exception is a mistake."""
        return code < 0
