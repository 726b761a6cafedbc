"""`python -m worker`: one worker process."""

from __future__ import annotations

import asyncio
import signal
import sys
from contextlib import suppress
from itertools import chain, repeat
from typing import TYPE_CHECKING

import structlog

from service.embedded import running_servers
from service.log import configure_logging
from service.server_errors import ServerAwayError, ServerError
from service.settings import SettingsError, load_settings
from service.shards import NoTiersError
from worker.main import run_worker

if TYPE_CHECKING:
    from service.settings import Settings

_RETRIES_S = (1, 1, 2, 5, 10)  # the last one again and again
_log = structlog.get_logger("allotment.worker")


async def main() -> None:
    settings = load_settings()
    configure_logging(settings)
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGINT):  # until the worker has its own
        loop.add_signal_handler(number, task.cancel)
    with suppress(asyncio.CancelledError):
        await _run(settings)


async def _run(settings: Settings) -> None:
    """Run the worker once its servers are there: what is started with it may take longer."""
    for retry_s in chain(_RETRIES_S, repeat(_RETRIES_S[-1])):
        try:
            async with running_servers(settings, tell=_tell) as served:
                await run_worker(served)
        except ServerAwayError as error:
            _log.warning("worker.waits", retry_s=retry_s, error=str(error))
            await asyncio.sleep(retry_s)
        else:
            return


def _tell(note: str) -> None:
    sys.stderr.write(f"{note}\n")


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except (ServerError, SettingsError, NoTiersError, ValueError) as error:
        sys.exit(f"error: {error}")
