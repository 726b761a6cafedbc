"""`python -m worker`: one worker process."""

from __future__ import annotations

import asyncio
import sys

from service.embedded import running_servers
from service.log import configure_logging
from service.server_errors import ServerError
from service.settings import SettingsError, load_settings
from service.shards import NoTiersError
from worker.main import run_worker


async def main() -> None:
    settings = load_settings()
    configure_logging(settings)
    async with running_servers(settings, tell=_tell) as served:
        await run_worker(served)


def _tell(note: str) -> None:
    sys.stderr.write(f"{note}\n")


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except (ServerError, SettingsError, NoTiersError, ValueError) as error:
        sys.exit(f"error: {error}")
