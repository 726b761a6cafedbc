"""Processes that a row is measured against: workers of ours, and the naive one."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from service import guarded_exec

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncIterator, Awaitable, Callable

    from bench.stage import Stage

__all__ = ["child", "wait_until"]

_ROOT = Path(__file__).parents[1]
_STOP_SECONDS_MAX = 15
_WAIT_SECONDS_MAX = 120  # nothing that is waited for takes longer; then something is broken
_POLL_SECONDS = 0.005
_LOG_CHARS_SHOWN = 2_000


@asynccontextmanager
async def child(stage: Stage, module: str, **settings: str) -> AsyncIterator[Process]:
    """Run `python -m MODULE` with the stage's addresses and *settings*; stopped at the end, and if we die."""
    environment = os.environ | {
        "DATABASE_URL": stage.settings.asyncpg_dsn,
        "REDIS_URL": stage.settings.quota_redis,
        "METRICS_PORT": "0",
        "LOG_LEVEL": "warning",
    }
    environment |= settings
    guard = [sys.executable, "-I", "-S", guarded_exec.__file__]
    words = [str(n) for n in (os.getpid(), int(signal.SIGKILL), os.getuid(), os.getgid())]
    command = [*guard, *words, sys.executable, "-m", module]
    with (stage.directory / f"{module}.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=_ROOT,
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        yield process
    except BaseException:
        text = (stage.directory / f"{module}.log").read_text(errors="replace")
        sys.stderr.write(text[-_LOG_CHARS_SHOWN:])
        raise
    finally:
        await _stop(process)


async def _stop(process: Process) -> None:
    if process.returncode is None:
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), _STOP_SECONDS_MAX)
        except TimeoutError:
            process.kill()
            await process.wait()


async def wait_until(
    reached: Callable[[], Awaitable[bool]], *, by: Process | None, what: str
) -> None:
    """Return as soon as *reached*; raises if *by*, who has to reach it, ends or takes for ever."""
    async with asyncio.timeout(_WAIT_SECONDS_MAX):
        while not await reached():
            if by is not None and by.returncode is not None:
                raise RuntimeError(f"{what}: the process ended with {by.returncode}")
            await asyncio.sleep(_POLL_SECONDS)
