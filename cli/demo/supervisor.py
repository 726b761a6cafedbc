"""The worker of the demo: a real process, started again when somebody kills it.

It dies with the demo, however the demo ends (Linux): a worker without its servers is of no use.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections import deque
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cli.demo.errors import DemoError
from service import guarded_exec

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncIterator, Callable

    from service.settings import Settings

__all__ = ["Supervisor", "supervised"]

_ROOT = Path(__file__).parents[2]  # `-m worker` finds the package in its working directory
_RESTARTS_MAX = 20
_STOP_SECONDS_MAX = 15.0  # the worker gives its own jobs 8
_READY_SECONDS_MAX = 60.0
_LINES_KEPT = 8
_LINE_BYTES_MAX = 1_048_576  # a traceback is one line of JSON
_STARTED = b"worker.started"


class Supervisor:
    """One worker process after the other, until `stop`."""

    def __init__(self, settings: Settings, *, tell: Callable[[str], object]) -> None:
        self._environment = _environment(settings)
        self._tell = tell
        self._process: Process | None = None
        self.stopping = False
        self._lines: deque[str] = deque(maxlen=_LINES_KEPT)
        self.ready = asyncio.Event()
        self.restarts = 0

    async def run(self) -> None:
        """Keep a worker running.

        Raises:
            DemoError: it ends before it is ready, or again and again.
        """
        await self._start()
        self._tell(f"worker started as process {self._pid}")
        while True:
            code = await self._watch()
            if self.stopping:
                return
            # Nobody killed it, and it never ran: starting it again is of no use.
            refused = code >= 0 and not self.ready.is_set()
            if refused or self.restarts >= _RESTARTS_MAX:
                raise DemoError(f"the worker ended with {_named(code)}: {self.last_words}")
            self.restarts += 1
            ended = self._pid
            await self._start()
            self._tell(
                f"worker {ended} ended with {_named(code)}; started again as process {self._pid}"
            )

    async def stop(self) -> None:
        """Stop the worker in order, and by force if that takes too long; safe to repeat."""
        self.stopping = True
        process = self._process
        if process is None or process.returncode is not None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)
            try:
                await asyncio.wait_for(process.wait(), _STOP_SECONDS_MAX)
            except TimeoutError:
                continue
            return

    @property
    def last_words(self) -> str:
        """What the worker logged last."""
        return " / ".join(self._lines) or "it said nothing"

    @property
    def _pid(self) -> int:
        assert self._process is not None, "not started"
        return self._process.pid

    async def _start(self) -> None:
        uid, gid, parent = os.getuid(), os.getgid(), os.getpid()
        guard = [
            "-I",
            "-S",
            guarded_exec.__file__,
            *map(str, (parent, int(signal.SIGKILL), uid, gid)),
        ]
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            *guard,
            sys.executable,
            "-m",
            "worker",
            cwd=_ROOT,
            env=self._environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            limit=_LINE_BYTES_MAX,
            start_new_session=True,  # Ctrl-C is ours alone: we decide who stops first
        )

    async def _watch(self) -> int:
        """Read what the worker says until it ends; return its exit code."""
        assert self._process is not None
        assert self._process.stderr is not None
        with contextlib.suppress(ValueError):  # a line longer than the buffer: no line of ours
            async for line in self._process.stderr:
                if _STARTED in line:
                    self.ready.set()
                self._lines.append(line.decode(errors="replace").strip())
        return await self._process.wait()


@asynccontextmanager
async def supervised(
    settings: Settings, *, tell: Callable[[str], object]
) -> AsyncIterator[Supervisor]:
    """A worker that is ready, as long as the block, which is left when it cannot be kept."""
    supervisor = Supervisor(settings, tell=tell)
    block = asyncio.current_task()
    assert block is not None
    watch = asyncio.create_task(supervisor.run(), name="supervisor")
    watch.add_done_callback(lambda _: None if supervisor.stopping else block.cancel())
    try:
        await _ready(supervisor)
        yield supervisor
    except asyncio.CancelledError:
        if watch.done() and not watch.cancelled() and (error := watch.exception()):
            block.uncancel()
            raise error from None
        raise
    finally:
        await supervisor.stop()
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)


async def _ready(supervisor: Supervisor) -> None:
    try:
        await asyncio.wait_for(supervisor.ready.wait(), _READY_SECONDS_MAX)
    except TimeoutError:
        raise DemoError(f"the worker did not get ready: {supervisor.last_words}") from None


def _environment(settings: Settings) -> dict[str, str]:
    return os.environ | {
        "DATABASE_URL": settings.asyncpg_dsn,
        "REDIS_URL": settings.quota_redis,
        "QUOTA_REDIS_URL": settings.quota_redis,
        "QUEUE_REDIS_URL": settings.queue_redis,
        "KEY_PREFIX": settings.key_prefix,
        "QUEUE_NAME": settings.queue_name,
        "SHARDS": str(settings.shards),
        "AUTO_PROVISION": "true",
        "METRICS_PORT": "0",
        "METRICS_HOST": "127.0.0.1",
        "LOG_FORMAT": "json",
        "LOG_LEVEL": "info",
    }


def _named(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
