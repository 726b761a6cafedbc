"""Real PostgreSQL and real Redis, started by us when no address of one was given.

They live in one data directory that is kept between runs, and end with the process that started
them: in order when it leaves the block, by the kernel when it is killed (Linux), and else by the
next start, which stops what it finds running there.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

from service.data_directory import DataDirectory
from service.embedded_postgres import EmbeddedPostgres
from service.embedded_redis import Durability, EmbeddedRedis
from service.ports import free_loopback
from service.server_checks import check_postgres, check_redis
from service.settings import Settings
from service.system_user import postgres_user


class EmbeddedServers:
    """PostgreSQL and Redis of our own, as a context manager, plain or async.

    Enter it from a thread that lives as long as the servers: Linux ends them with that thread.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        chosen: bool = True,
        durability: Durability = "everysec",
        tcp: bool = False,
        postgres_port: int = 0,
        redis_port: int = 0,
        with_postgres: bool = True,
        with_redis: bool = True,
    ) -> None:
        """Say what to start; nothing runs before the block is entered.

        *chosen* false allows another directory where *data_dir* is out of PostgreSQL's reach;
        *tcp* listens on loopback ports, with a password, instead of on unix sockets alone.
        """
        self._data_dir = data_dir
        self._chosen = chosen
        self._durability: Durability = durability
        self._tcp = tcp
        self._postgres_port = postgres_port
        self._redis_port = redis_port
        self._with_postgres = with_postgres
        self._with_redis = with_redis
        self._directory: DataDirectory | None = None
        self.postgres: EmbeddedPostgres | None = None
        self.redis: EmbeddedRedis | None = None

    @property
    def database_url(self) -> str:
        """``postgresql://…`` of the database ``allotment``."""
        assert self.postgres is not None, "PostgreSQL was not started"
        return self.postgres.url

    @property
    def redis_url(self) -> str:
        """``unix://…``, or ``redis://…`` with *tcp*."""
        assert self.redis is not None, "Redis was not started"
        return self.redis.url

    @property
    def data_dir(self) -> Path:
        """Where the records are, which may not be where they were asked to be (see `note`)."""
        assert self._directory is not None, "not started"
        return self._directory.path

    @property
    def note(self) -> str | None:
        """What the user should be told about where the records are, if anything."""
        return self._directory.note if self._directory else None

    def __enter__(self) -> Self:
        try:
            self._open()
            for server in self._servers():
                server.prepare()
            self._spawn()
            for server in self._servers():
                server.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        try:
            await asyncio.to_thread(self._open)
            await asyncio.gather(*(asyncio.to_thread(one.prepare) for one in self._servers()))
            self._spawn()  # not in a thread of the pool: see the class
            await asyncio.gather(*(asyncio.to_thread(one.wait_ready) for one in self._servers()))
        except BaseException:
            await asyncio.to_thread(self.stop)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.stop)

    def stop(self) -> None:
        """Stop both servers and let go of the directory; safe to repeat."""
        for server in self._servers():
            server.stop()
        if self._directory is not None:
            self._directory.close()
            self._directory = None

    def _open(self) -> None:
        user = postgres_user() if self._with_postgres else None
        self._directory = DataDirectory(self._data_dir, chosen=self._chosen, user=user)
        password = _password(self._directory.path)
        if self._with_postgres:
            listen = free_loopback(self._postgres_port, server="PostgreSQL") if self._tcp else None
            self.postgres = EmbeddedPostgres(
                self._directory, user=user, listen=listen, password=password
            )
        if self._with_redis:
            listen = free_loopback(self._redis_port, server="Redis") if self._tcp else None
            self.redis = EmbeddedRedis(
                self._directory, durability=self._durability, listen=listen, password=password
            )

    def _spawn(self) -> None:
        for server in self._servers():
            server.spawn()

    def _servers(self) -> list[EmbeddedPostgres | EmbeddedRedis]:
        return [server for server in (self.redis, self.postgres) if server is not None]


@asynccontextmanager
async def running_servers(
    settings: Settings, *, tell: Callable[[str], object]
) -> AsyncIterator[Settings]:
    """Give *settings* with every address filled in, of servers that run and were found fit.

    Starts only what no address was given for; *tell* gets what the user should know.
    Raises ServerError.
    """
    if not (settings.needs_postgres or settings.needs_redis):
        await _check(settings)
        yield settings
        return
    servers = EmbeddedServers(
        settings.data_dir,
        chosen=settings.data_dir_was_chosen,
        durability=settings.durability,
        with_postgres=settings.needs_postgres,
        with_redis=settings.needs_redis,
    )
    async with servers:
        if servers.note:
            tell(servers.note)
        served = settings.served_by(
            database_url=servers.database_url if settings.needs_postgres else None,
            redis_url=servers.redis_url if settings.needs_redis else None,
        )
        await _check(served)
        yield served


async def _check(settings: Settings) -> None:
    await check_postgres(settings.asyncpg_dsn)
    for url in sorted({settings.quota_redis, settings.queue_redis}):
        await check_redis(url)


def _password(directory: Path) -> str:
    """Return the password of this directory's servers, which is made once and kept."""
    kept = directory / "password"
    if not kept.exists():
        fresh = directory / "password.new"
        fresh.touch(mode=0o600)
        fresh.write_text(secrets.token_urlsafe())
        fresh.rename(kept)
    return kept.read_text()
