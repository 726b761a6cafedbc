"""Is this server one that Allotment can trust?  Asked once, at start, of every server."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping

import asyncpg
from redis.asyncio import Redis
from redis.exceptions import AuthenticationError, BusyLoadingError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from service.server_binaries import POSTGRES_MAJOR_MIN, REDIS_VERSION_MIN
from service.server_errors import ServerAwayError, ServerError
from service.urls import redacted

_CONNECT_SECONDS_MAX = 5
# What a server that is down, or still starting, answers with; else it is the address that is wrong.
_AWAY = (
    OSError,  # TimeoutError is one of them
    asyncpg.CannotConnectNowError,
    asyncpg.ConnectionDoesNotExistError,
    asyncpg.TooManyConnectionsError,
    BusyLoadingError,
    RedisConnectionError,
    RedisTimeoutError,
)


async def check_servers(database_url: str, redis_url: str) -> None:
    """Raise ServerError unless both servers are there, new enough, and keep what they are given."""
    await check_postgres(database_url)
    await check_redis(redis_url)


async def check_postgres(database_url: str) -> None:
    """Raise ServerError unless a PostgreSQL 15 or later answers at *database_url*."""
    shown = redacted(database_url)
    try:
        connection = await asyncpg.connect(database_url, timeout=_CONNECT_SECONDS_MAX)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise _kind_of(error)(
            f"PostgreSQL at {shown} cannot be used: {_reason(error)}. Start it or correct "
            "DATABASE_URL; with no DATABASE_URL at all, a server is started for you."
        ) from None
    try:
        version = connection.get_server_version()
    finally:
        await connection.close(timeout=_CONNECT_SECONDS_MAX)
    if complaint := postgres_complaint(version.major):
        raise ServerError(f"PostgreSQL at {shown} {complaint}")


async def check_redis(redis_url: str) -> None:
    """Raise ServerError unless a Redis 6.2 or later that never evicts answers at *redis_url*."""
    shown = redacted(redis_url)
    client = Redis.from_url(
        redis_url, socket_connect_timeout=_CONNECT_SECONDS_MAX, socket_timeout=_CONNECT_SECONDS_MAX
    )
    try:
        # INFO, because hosted servers often forbid CONFIG.
        facts = {**await client.info("server"), **await client.info("memory")}
    except (OSError, RedisError) as error:
        raise _kind_of(error)(
            f"Redis at {shown} cannot be used: {_reason(error)}. Start it or correct REDIS_URL; "
            "with no REDIS_URL at all, a server is started for you."
        ) from None
    finally:
        await client.aclose()
    if complaint := redis_complaint(facts):
        raise ServerError(f"Redis at {shown} {complaint}")


def postgres_complaint(major: int) -> str | None:
    """Return what is wrong with a PostgreSQL of this version, if anything."""
    if major >= POSTGRES_MAJOR_MIN:
        return None
    return f"is version {major}; Allotment needs {POSTGRES_MAJOR_MIN} or later. Upgrade it."


def redis_complaint(facts: Mapping[str, object]) -> str | None:
    """Return what is wrong with a Redis that says *facts* in INFO, if anything."""
    version = str(facts.get("redis_version", "0"))
    if tuple(int(number) for number in re.findall(r"\d+", version)) < REDIS_VERSION_MIN:
        wanted = ".".join(str(number) for number in REDIS_VERSION_MIN)
        return f"is version {version}; Allotment needs {wanted} or later, or Valkey. Upgrade it."
    return eviction_complaint(facts)


def eviction_complaint(facts: Mapping[str, object]) -> str | None:
    """Return what is wrong with what a Redis does when it is full, if anything, as *facts* in INFO say."""
    policy = facts.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        return (
            f"has maxmemory-policy {policy}: when full it would drop usage that is not in "
            "PostgreSQL yet. Run `CONFIG SET maxmemory-policy noeviction`, and set it in "
            "redis.conf or in your provider's parameters."
        )
    return None


def _kind_of(error: BaseException) -> type[ServerError]:
    """Whether it may help to wait: not for a name that there is not, or a password that is wrong."""
    wrong = isinstance(error, AuthenticationError | socket.gaierror)
    wrong = wrong or isinstance(error.__context__, socket.gaierror)
    return ServerAwayError if isinstance(error, _AWAY) and not wrong else ServerError


def _reason(error: BaseException) -> str:
    text = str(error).strip().rstrip(".") or type(error).__name__
    return text.splitlines()[0]
