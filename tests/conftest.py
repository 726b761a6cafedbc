"""Real servers for the tests that need them, started at the first request and once a session."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.embedded import EmbeddedServers
from service.system_user import postgres_user


@pytest.fixture(scope="session")
def open_tmp_dir() -> Iterator[Path]:
    """A directory that PostgreSQL's own user may enter, as pytest's tmp_path is closed to it."""
    user = postgres_user()
    bases = [Path(tempfile.gettempdir()), Path("/var/tmp")]
    base = next(base for base in bases if user is None or user.may_enter(base))
    path = Path(tempfile.mkdtemp(prefix="allotment-test-", dir=base))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def servers(open_tmp_dir: Path) -> Iterator[EmbeddedServers]:
    """PostgreSQL and Redis for the whole session."""
    with EmbeddedServers(open_tmp_dir / "servers") as running:
        yield running


@pytest.fixture(scope="session")
def postgres_url(servers: EmbeddedServers) -> str:
    """The address of the session's PostgreSQL."""
    return servers.database_url


@pytest.fixture(scope="session")
def redis_url(servers: EmbeddedServers) -> str:
    """The address of the session's Redis."""
    return servers.redis_url
