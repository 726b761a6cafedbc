"""What every command stands on: settings, servers that run, connections, and an orderly end."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from cli.addresses import settings_of_up
from quota.client import Quota
from quota.keys import Keys
from service.changes import Stores
from service.database import Database
from service.embedded import running_servers
from service.loading import DatabaseLoader
from service.log import configure_logging
from service.metrics import Metrics
from service.migrations import require_current
from service.server_checks import check_servers
from service.server_errors import DataDirectoryInUseError
from service.settings import Settings, SettingsError, load_settings
from service.shards import NoTiersError, make_shards
from service.tiers import stored_rules
from worker.drain import Drain

if TYPE_CHECKING:
    from cli.output import Output
    from quota.rules import Rules

__all__ = ["Session", "open_session", "run", "serving", "settings_for"]

_POOL_MAX = 4  # a command does one thing at a time
_REDIS_TIMEOUT_S = 5.0
_SETTLE_SECONDS_MAX = 2.0  # of one round; who waits for it asks for another

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Session:
    """The connections of one short command."""

    settings: Settings
    database: Database
    redis: Redis
    keys: Keys

    async def rules(self) -> Rules:
        """The rules in force; raises NoTiersError."""
        rules = await stored_rules(self.database)
        if rules is None:
            raise NoTiersError
        return rules

    async def now(self) -> datetime:
        """The time of the PostgreSQL server, which dates what is written there."""
        async with self.database.connection() as connection:
            now: datetime = await connection.fetchval("SELECT now()")
        return now

    def stores(self) -> Stores:
        """Where a user is changed while it stands still; the log is applied in this process."""
        drain = Drain(
            self.database,
            self.redis,
            self.keys,
            Metrics(CollectorRegistry()),
            lines_max=self.settings.apply_records_max,
            dedupe_ms=self.settings.dedupe_seconds * 1000,
            late_grace_ms=self.settings.late_grace * 1000,
        )

        async def settle() -> None:
            await drain.run(seconds_max=_SETTLE_SECONDS_MAX)

        async def roll(user: str, *, now: datetime | None) -> None:
            async with self.quota() as quota:
                await quota.roll(user, now=now)

        return Stores(
            self.database,
            self.redis,
            self.keys,
            settle=settle,
            roll=roll,
            grace_ms=self.settings.late_grace * 1000,
        )

    def quota(self) -> Quota:
        """A client that loads users itself, and makes none: looking at a user is no use of it."""
        loader = DatabaseLoader(
            self.database,
            self.redis,
            auto_provision=False,
            dedupe_ms=self.settings.dedupe_seconds * 1000,
            late_ms=self.settings.late_grace * 1000,
        )
        return Quota(
            self.redis,
            prefix=self.settings.key_prefix,
            shards=self.settings.shards,
            loader=loader,
        )


def run(main: Coroutine[Any, Any, Result]) -> Result:
    """Run *main*; SIGTERM and Ctrl-C cancel it, so that servers started for it stop in order.

    Raises asyncio.CancelledError when that happened.
    """
    return asyncio.run(_cancellable(main))


async def _cancellable(main: Coroutine[Any, Any, Result]) -> Result:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    return await main


def settings_for(*, quiet: bool) -> Settings:
    """Read the settings and set up the logs; *quiet* for a command whose answer is its output."""
    settings = load_settings()
    if quiet and "log_level" not in settings.model_fields_set:
        configure_logging(settings.model_copy(update={"log_level": "error"}))
    else:
        configure_logging(settings)
    return settings


@asynccontextmanager
async def serving(settings: Settings, output: Output) -> AsyncIterator[Settings]:
    """Give *settings* with servers that run: those named, those of `allotment up`, or our own.

    Raises ServerError.
    """
    async with AsyncExitStack() as stack:
        try:
            with output.step("starting PostgreSQL and Redis"):
                served = await stack.enter_async_context(
                    running_servers(settings, tell=output.note)
                )
        except DataDirectoryInUseError:
            joined = settings_of_up(settings)
            if joined is None:
                raise
            await check_servers(joined.asyncpg_dsn, joined.quota_redis)
            served = joined
        yield served


@asynccontextmanager
async def open_session(output: Output) -> AsyncIterator[Session]:
    """Connect a short command to a database that has the schema of this checkout.

    Raises:
        SettingsError, ServerError, OutdatedDatabaseError
    """
    async with serving(settings_for(quiet=True), output) as settings:
        await require_current(settings.asyncpg_dsn)
        redis = Redis.from_url(
            settings.quota_redis,
            socket_timeout=_REDIS_TIMEOUT_S,
            socket_connect_timeout=_REDIS_TIMEOUT_S,
        )
        async with Database(settings.sqlalchemy_url, pool_max=_POOL_MAX) as database, redis:
            try:
                await make_shards(database, settings.shards)
            except ValueError as error:
                raise SettingsError(str(error)) from None
            yield Session(settings, database, redis, Keys(settings.key_prefix, settings.shards))
