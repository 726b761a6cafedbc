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
    from collections.abc import AsyncIterator, Callable, Sequence

    from service.settings import Settings

__all__ = ["Supervisor", "kept_running", "supervised"]

_ROOT = Path(__file__).parents[2]  # `-m worker` finds the package in its working directory
_RESTARTS_MAX = 20
_STOP_SECONDS_MAX = 15.0  # the worker gives its own jobs 8
_READY_SECONDS_MAX = 60.0
_LINES_KEPT = 8
_LINE_BYTES_MAX = 1_048_576  # a traceback is one line of JSON


class Supervisor:
    """One worker process after the other, until `stop`."""

    def __init__(
        self,
        settings: Settings,
        *,
        tell: Callable[[str], object],
        name: str = "worker",
        words: tuple[str, ...] = ("worker",),
    ) -> None:
        """*words*: the module that is run, and its arguments; it says `NAME.started` when it is ready."""
        self._environment = _environment(settings)
        self._tell = tell
        self.name = name
        self._words = words
        self._started = f"{words[0].rpartition('.')[2]}.started".encode()
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
        self._tell(f"{self.name} started as process {self.pid}")
        while True:
            code = await self._watch()
            if self.stopping:
                return
            if not self.may_restart(code):
                raise DemoError(f"the {self.name} ended with {_named(code)}: {self.last_words}")
            self.restarts += 1
            ended = self.pid
            await self._start()
            self._tell(
                f"{self.name} {ended} ended with {_named(code)}; "
                f"started again as process {self.pid}"
            )

    def may_restart(self, code: int) -> bool:
        """Whether one that ended with *code* is to be started again."""
        # Nobody killed it, and it never ran: starting it again is of no use.
        refused = code >= 0 and not self.ready.is_set()
        return not refused and self.restarts < _RESTARTS_MAX

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
    def pid(self) -> int:
        """The process that runs now, or ran last."""
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
            *self._words,
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
                if self._started in line:
                    self.ready.set()
                self._lines.append(line.decode(errors="replace").strip())
        return await self._process.wait()


@asynccontextmanager
async def supervised(
    settings: Settings, *, tell: Callable[[str], object]
) -> AsyncIterator[Supervisor]:
    """A worker that is ready, as long as the block, which is left when it cannot be kept."""
    supervisor = Supervisor(settings, tell=tell)
    async with kept_running([supervisor]):
        yield supervisor


@asynccontextmanager
async def kept_running(supervisors: Sequence[Supervisor]) -> AsyncIterator[None]:
    """All of *supervisors* with a process that is ready, as `supervised`."""
    block = asyncio.current_task()
    assert block is not None

    def watched(supervisor: Supervisor) -> asyncio.Task[None]:
        watch = asyncio.create_task(supervisor.run(), name=supervisor.name)
        watch.add_done_callback(lambda _: None if supervisor.stopping else block.cancel())
        return watch

    watches = [watched(supervisor) for supervisor in supervisors]
    try:
        await asyncio.gather(*map(_ready, supervisors))
        yield
    except asyncio.CancelledError:
        failed = [watch for watch in watches if watch.done() and not watch.cancelled()]
        errors = [error for watch in failed if (error := watch.exception())]
        if errors:
            block.uncancel()
            raise errors[0] from None
        raise
    finally:
        await asyncio.gather(*(supervisor.stop() for supervisor in supervisors))
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*watches, return_exceptions=True)


async def _ready(supervisor: Supervisor) -> None:
    try:
        await asyncio.wait_for(supervisor.ready.wait(), _READY_SECONDS_MAX)
    except TimeoutError:
        raise DemoError(
            f"the {supervisor.name} did not get ready: {supervisor.last_words}"
        ) from None


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
