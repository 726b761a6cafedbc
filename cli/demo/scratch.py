"""A database and a key space for one run, gone at its end: nobody's records are touched."""

from __future__ import annotations

import secrets
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

import asyncpg
from pydantic import SecretStr
from redis.asyncio import Redis

from cli.demo.errors import DemoError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from service.settings import Settings

__all__ = ["scratch"]

_DATABASE = "allotment_demo_"
_PREFIX = "allotment-demo-"
_KEYS_AT_ONCE = 1_000
_JOB_KEYS = ("arq:job:", "arq:in-progress:", "arq:retry:", "arq:result:")


@asynccontextmanager
async def scratch(settings: Settings, *, alone: bool) -> AsyncIterator[Settings]:
    """Give *settings* pointed at an empty database and key space, and drop both afterwards.

    *alone*: nobody else uses these servers, so what a killed run left behind is dropped first.

    Raises:
        DemoError: the database cannot be made.
    """
    mark = secrets.token_hex(4)
    name, prefix = f"{_DATABASE}{mark}", f"{_PREFIX}{mark}"
    if alone:
        await _drop_leftovers(settings)
    url = await _make_database(settings.asyncpg_dsn, name)
    changed = {
        "database_url": SecretStr(url),
        "key_prefix": prefix,
        "queue_name": f"{prefix}:queue",
    }
    try:
        yield settings.model_copy(update=changed | {"auto_provision": True})
    finally:
        await _drop_database(settings.asyncpg_dsn, name)
        await _drop_keys(settings, f"{prefix}:queue", match=f"{prefix}:*")


async def _make_database(dsn: str, name: str) -> str:
    url = urlunsplit(urlsplit(dsn)._replace(path=f"/{name}"))
    try:
        await _run(dsn, f'CREATE DATABASE "{name}"')
        connection = await asyncpg.connect(url)
    except asyncpg.PostgresError as error:
        raise DemoError(
            f"no scratch database could be made beside DATABASE_URL's: {error}. "
            "Give its role CREATEDB, or unset DATABASE_URL, and a server is started for the demo."
        ) from None
    try:  # an address can name its database twice, and then the path is not the one that counts
        found = await connection.fetchval("SELECT current_database()")
    finally:
        await connection.close()
    if found != name:
        await _drop_database(dsn, name)
        raise DemoError(
            f"DATABASE_URL leads to the database {found} whatever its path says: "
            "name it in the path"
        )
    return url


async def _drop_database(dsn: str, name: str) -> None:
    await _run(dsn, f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


async def _run(dsn: str, text: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(text)
    finally:
        await connection.close()


async def _drop_leftovers(settings: Settings) -> None:
    connection = await asyncpg.connect(settings.asyncpg_dsn)
    try:
        rows = await connection.fetch(
            "SELECT datname FROM pg_database WHERE starts_with(datname, $1)", _DATABASE
        )
    finally:
        await connection.close()
    for row in rows:
        mark = row["datname"].removeprefix(_DATABASE)
        await _drop_database(settings.asyncpg_dsn, row["datname"])
        await _drop_keys(settings, f"{_PREFIX}{mark}:queue", match=f"{_PREFIX}{mark}:*")


async def _drop_keys(settings: Settings, queue: str, *, match: str) -> None:
    async with Redis.from_url(settings.queue_redis) as redis:
        # The worker's own crons have a queue beside that of the producers.
        queued = [await redis.zrange(name, 0, -1) for name in (queue, f"{queue}:ticks")]
        jobs = [job.decode() for ids in queued for job in ids]
        if jobs:
            await redis.unlink(*(f"{start}{job}" for job in jobs for start in _JOB_KEYS))
    for url in sorted({settings.quota_redis, settings.queue_redis}):
        async with Redis.from_url(url) as redis:
            found: list[bytes] = []
            async for key in redis.scan_iter(match=match, count=_KEYS_AT_ONCE):
                found.append(key)
                if len(found) >= _KEYS_AT_ONCE:
                    await redis.unlink(*found)
                    found.clear()
            if found:
                await redis.unlink(*found)
