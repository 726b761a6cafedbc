"""How a command finds the servers of an `allotment up` that runs in the same directory.

Only one process may start the servers of a data directory. The others are told where they are by
a file beside the records, which nobody else may read: addresses can hold passwords.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from pathlib import Path

    from service.settings import Settings

__all__ = ["published", "settings_of_up"]

_FILE = "addresses.json"
_DIRECTORY_MODE = 0o711  # as the servers make it: PostgreSQL's own user has to pass


@contextmanager
def published(settings: Settings, *, served: Settings) -> Iterator[None]:
    """Leave the addresses of *served* where the commands of this directory look, while inside."""
    directory = settings.data_dir.expanduser().absolute()
    made = not directory.exists()
    directory.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
    path = directory / _FILE
    _write(path, {"process": _mark(os.getpid()), **_urls(served)})
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        if made:
            with suppress(OSError):  # the records went elsewhere, and something else came here
                directory.rmdir()


def settings_of_up(settings: Settings) -> Settings | None:
    """*settings* with the servers of the `allotment up` that runs here; None if none does."""
    path = settings.data_dir.expanduser().absolute() / _FILE
    try:
        found = json.loads(path.read_text())
        if found["process"] != _mark(int(found["process"][0])):
            return None  # it was killed, and left the file behind
        return settings.served_by(database_url=found["database"], redis_url=found["redis"])
    except (OSError, ValueError, KeyError, TypeError, IndexError, psutil.Error):
        return None


def _urls(served: Settings) -> dict[str, str]:
    return {"database": served.asyncpg_dsn, "redis": served.quota_redis}


def _mark(process_id: int) -> list[Any]:
    """A process, and not the next one that is given the same number."""
    return [process_id, psutil.Process(process_id).create_time()]


def _write(path: Path, content: dict[str, Any]) -> None:
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        json.dump(content, stream)
    fresh.replace(path)
