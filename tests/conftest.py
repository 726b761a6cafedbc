"""Real servers for the tests that need them, started at the first request and once a session."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import pytest

from service.embedded import EmbeddedServers
from service.migrations import upgrade
from service.system_user import postgres_user

# copy_of("name of a database") -> the address of its copy, which is dropped at the block's end.
CopyOf = Callable[[str], AbstractAsyncContextManager[str]]


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


@pytest.fixture(scope="session")
def copy_of(postgres_url: str) -> CopyOf:
    """A block with a database of its own, made as the copy of another one."""

    @asynccontextmanager
    async def copied(template: str) -> AsyncIterator[str]:
        name = f"test_{uuid4().hex}"
        owner = await asyncpg.connect(postgres_url)
        try:
            await owner.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
            yield urlsplit(postgres_url)._replace(path=f"/{name}").geturl()
            # FORCE, because a failed test leaves connections behind.
            await owner.execute(f"DROP DATABASE {name} WITH (FORCE)")
        finally:
            await owner.close()

    return copied


@pytest.fixture(scope="session")
async def template_database(copy_of: CopyOf) -> AsyncIterator[str]:
    """The name of a database with every table and no row, migrated once."""
    async with copy_of("template1") as url:
        await upgrade(url)
        yield urlsplit(url).path.removeprefix("/")


@pytest.fixture
async def database_url(template_database: str, copy_of: CopyOf) -> AsyncIterator[str]:
    """The address of a database of this test alone, with every table and no row."""
    async with copy_of(template_database) as url:
        yield url
