"""Real servers, started once a session, and a whole installation for each test that asks for one."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import hypothesis
import psutil
import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from quota import Quota
from quota.allowance import COUNTS_AFTER_MS
from quota.rules import Rules
from service.database import Database
from service.embedded import EmbeddedServers
from service.migrations import upgrade
from service.settings import Settings
from service.system_user import postgres_user
from service.tiers import apply_rules, publish
from worker.deps import Deps, open_deps

# A busy machine is no fault of what is tested: no example has to be quick.
hypothesis.settings.register_profile(
    "any machine",
    parent=hypothesis.settings(),
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("any machine")
# Nor has a reply: a test about a gate that is slow says how long it waits.
Quota.__init__.__kwdefaults__ = {
    **(Quota.__init__.__kwdefaults__ or {}),
    "timeout_s": 20.0,
    "load_timeout_s": 30.0,
}


def pytest_xdist_auto_num_workers() -> int:
    """How many processes `-n auto` takes: one more than there are cores, as tests wait for servers most of the time."""
    return min(os.cpu_count() or 1, 3) + 1


# copy_of("name of a database") -> the address of its copy, which is dropped at the block's end.
CopyOf = Callable[[str], AbstractAsyncContextManager[str]]


# A database for each test is a thousand files each time: in memory, ten times as fast as on a disk.
_MEMORY = Path("/dev/shm")
_MEMORY_BYTES_MIN = 4 << 30  # there and of the machine; the tests need up to one for each core


def _memory() -> list[Path]:
    """The directory that is kept in memory, where there is one and memory enough."""
    try:
        free = shutil.disk_usage(_MEMORY).free
    except OSError:  # not on macOS
        return []
    roomy = min(free, psutil.virtual_memory().available) >= _MEMORY_BYTES_MIN
    return [_MEMORY] if roomy and os.access(_MEMORY, os.W_OK) else []


@pytest.fixture(scope="session")
def open_tmp_dir() -> Iterator[Path]:
    """A directory that PostgreSQL's own user may enter, as pytest's tmp_path is closed to it."""
    user = postgres_user()
    bases = [*_memory(), Path(tempfile.gettempdir()), Path("/var/tmp")]
    base = next(base for base in bases if user is None or user.may_enter(base))
    path = Path(tempfile.mkdtemp(prefix="allotment-test-", dir=base))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def way_dir(open_tmp_dir: Path) -> Path:
    """A directory for sockets of this test: its path is short enough for one."""
    return Path(tempfile.mkdtemp(dir=open_tmp_dir))


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
            await owner.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
            yield urlsplit(postgres_url)._replace(path=f"/{name}").geturl()
            # FORCE, because a failed test leaves connections behind.
            await owner.execute(f"DROP DATABASE {name} WITH (FORCE)")
        finally:
            await owner.close()

    return copied


@pytest.fixture
async def legacy_url(copy_of: CopyOf) -> AsyncIterator[str]:
    """The address of a database with nothing in it yet, for legacy rows."""
    async with copy_of("template1") as url:
        yield url


@pytest.fixture(scope="session")
async def template_database(postgres_url: str, copy_of: CopyOf) -> AsyncIterator[str]:
    """The name of a database with every table and no row, migrated once.

    Nothing of this session is to outlive a crash of the machine, and to make a database syncs a thousand files.
    """
    owner = await asyncpg.connect(postgres_url)
    await owner.execute("ALTER SYSTEM SET fsync = off")
    await owner.execute("SELECT pg_reload_conf()")
    await owner.close()
    async with copy_of("template1") as url:
        await upgrade(url)
        yield urlsplit(url).path.removeprefix("/")


@pytest.fixture
async def database_url(template_database: str, copy_of: CopyOf) -> AsyncIterator[str]:
    """The address of a database of this test alone, with every table and no row."""
    async with copy_of(template_database) as url:
        yield url


# apply_tiers(deps, document) -> the rules, in force in PostgreSQL and Redis.
ApplyTiers = Callable[[Deps, dict[str, Any]], Awaitable[Rules]]

_QUEUE_DB = 1  # arq's keys have no prefix of ours, so the queue gets a database that can be emptied

TIERS: dict[str, Any] = {
    "default_tier": "free",
    "features": {
        "image": {"price": "1", "format": {"video": "4"}, "quality": {"high": "2.5"}},
        "unit": {"price": "2"},
    },
    "tiers": {
        "free": {
            "limits": {
                "event": [
                    {"max": 100, "per": "day"},
                    {"max": 150, "per": "month", "mode": "soft"},
                ],
                "image": {"max": "unlimited", "per": "month"},
                "tokens": {"max": "unlimited", "per": "lifetime"},
                "unit": {"max": 10, "per": "month"},
            }
        },
        "pro": {"overdraft": True, "limits": {"*": {"max": 1000, "per": "month"}}},
    },
}


@pytest.fixture
async def settings(database_url: str, redis_url: str) -> AsyncIterator[Settings]:
    """The settings of this test alone; every key it makes in Redis is deleted afterwards."""
    prefix = f"test-{uuid4().hex}"
    yield Settings(
        database_url=SecretStr(database_url),
        redis_url=SecretStr(redis_url),
        quota_redis_url=SecretStr(redis_url),
        queue_redis_url=SecretStr(_with_db(redis_url, _QUEUE_DB)),
        key_prefix=prefix,
        metrics_port=0,
    )
    async with Redis.from_url(redis_url) as redis:
        async for key in redis.scan_iter(f"{prefix}:*", count=1000):
            await redis.unlink(key)
    async with Redis.from_url(_with_db(redis_url, _QUEUE_DB)) as queue:
        await queue.flushdb()


def _with_db(url: str, number: int) -> str:
    if urlsplit(url).scheme == "unix":
        return f"{url}?db={number}"
    return urlsplit(url)._replace(path=f"/{number}").geturl()


@pytest.fixture
async def deps(settings: Settings) -> AsyncIterator[Deps]:
    """What a worker works with, on `TIERS`."""
    async with Database(settings.sqlalchemy_url, pool_max=1) as database:
        await apply_rules(database, Rules.from_document(TIERS))
    async with open_deps(settings) as opened:
        yield opened


@pytest.fixture(scope="session")
def apply_tiers() -> ApplyTiers:
    """A function that puts other tiers in force, as `allotment tiers apply` does.

    So much earlier that their allowances count at once.
    """

    async def apply(deps: Deps, document: dict[str, Any]) -> Rules:
        at = datetime.now(UTC) - timedelta(milliseconds=COUNTS_AFTER_MS)
        rules = await apply_rules(deps.database, Rules.from_document(document), at=at)
        await publish(deps.redis, deps.keys, rules)
        return rules

    return apply
