"""Where scenarios run: a new database and a key space of its own for each, on real servers.

One database is migrated and the others are copied from it, which takes a tenth of the time.
"""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
from pydantic import SecretStr
from redis.asyncio import Redis

from cli.output import Output
from cli.replay.format import Scenario
from quota.rules import Rules
from quota.values import parse_user_id
from service.changes import Stores
from service.database import Database
from service.embedded import running_servers
from service.migrations import upgrade
from service.server_errors import ServerError
from service.settings import Settings
from service.staleness import drop_stale_users
from service.system_user import SystemUser, postgres_user
from service.tiers import apply_rules, publish
from service.users import put_user
from worker.deps import Deps, open_deps
from worker.holds import expire_holds

__all__ = ["Stage", "World", "open_stage", "running_stage"]

_DRAIN_SECONDS_MAX = 60.0
_DRAINS_MAX = 1000
_KEYS_AT_ONCE = 1000  # found by one SCAN, and unlinked together


@dataclass(frozen=True, slots=True)
class World:
    """What the steps of one scenario act on."""

    deps: Deps
    rules: Rules

    @property
    def stores(self) -> Stores:
        """Where a user is changed while it stands still."""
        deps = self.deps
        return Stores(
            deps.database,
            deps.redis,
            deps.keys,
            settle=self.apply,
            grace_ms=deps.settings.late_grace * 1000,
        )

    async def settle(self, at_ms: int) -> None:
        """Apply everything that was admitted so far, and end the holds that are due."""
        await self.apply()
        if await expire_holds(self.deps, now_ms=at_ms):
            await self.apply()

    async def apply(self) -> None:
        """Apply everything that was admitted so far."""
        for _ in range(_DRAINS_MAX):
            if not await self.deps.drain.run(seconds_max=_DRAIN_SECONDS_MAX):
                return
        raise RuntimeError(f"the usage log was not empty after {_DRAINS_MAX} rounds")

    async def flush(self) -> None:
        """Lose every key of this installation, which is the whole of its Redis."""
        await _unlink_all(self.deps.redis, self.deps.keys.prefix)


class Stage:
    """Servers with a migrated, empty database to copy."""

    def __init__(self, settings: Settings, template: str) -> None:
        self._settings = settings
        self._template = template
        self._count = 0

    @asynccontextmanager
    async def world(self, scenario: Scenario) -> AsyncIterator[World]:
        """An installation with the tiers and users of *scenario* and nothing else."""
        self._count += 1
        name = f"{self._template}_{self._count}"
        settings = _named(self._settings, name)
        dsn = self._settings.asyncpg_dsn
        await _execute(dsn, f"CREATE DATABASE {name} TEMPLATE {self._template}")
        try:
            rules = await _apply_rules(settings, scenario)
            async with open_deps(settings) as deps:
                try:
                    await publish(deps.redis, deps.keys, rules)
                    world = World(deps, rules)
                    await _put_users(world, scenario)
                    yield world
                finally:
                    await _unlink_all(deps.redis, deps.keys.prefix)
        finally:
            await _execute(dsn, f"DROP DATABASE {name} WITH (FORCE)")


@asynccontextmanager
async def running_stage(settings: Settings, output: Output) -> AsyncIterator[Stage]:
    """A stage on the servers of *settings*, else on servers started for this run alone.

    Raises:
        ServerError: they can not be used or started.
    """
    async with AsyncExitStack() as stack:
        if settings.needs_postgres or settings.needs_redis:
            user = postgres_user() if settings.needs_postgres else None
            directory = stack.enter_context(_temporary_directory(user))
            # Named as chosen: in this directory, which goes with the run, or nowhere.
            settings = Settings.model_validate(
                {**settings.model_dump(), "data_dir": directory / "servers"}
            )
        with output.step("starting PostgreSQL and Redis"):
            servers = running_servers(settings, tell=output.note)
            served = await stack.enter_async_context(servers)
        with output.step("making the database"):
            stage = await stack.enter_async_context(open_stage(served))
        yield stage


@asynccontextmanager
async def open_stage(settings: Settings) -> AsyncIterator[Stage]:
    """A stage on the servers of *settings*, all of which have an address; drops what it made.

    Raises:
        ServerError: the user of DATABASE_URL may not make databases.
    """
    template = f"allotment_replay_{secrets.token_hex(6)}"
    dsn = settings.asyncpg_dsn
    try:
        await _execute(dsn, f"CREATE DATABASE {template} TEMPLATE template0 ENCODING 'UTF8'")
    except asyncpg.InsufficientPrivilegeError as error:
        raise ServerError(
            f"replay makes a database for each file, and may not: {error}. Give the user of "
            "DATABASE_URL the right CREATEDB; with no DATABASE_URL, a server is started for you."
        ) from None
    try:
        await upgrade(_database_url(dsn, template))
        yield Stage(settings, template)
    finally:
        await _execute(dsn, f"DROP DATABASE {template} WITH (FORCE)")


async def _apply_rules(settings: Settings, scenario: Scenario) -> Rules:
    async with Database(settings.sqlalchemy_url, pool_max=1) as database:
        return await apply_rules(database, scenario.rules, at=scenario.steps[0].at)


async def _put_users(world: World, scenario: Scenario) -> None:
    at = scenario.steps[0].at
    async with world.deps.database.session() as session:
        for name, member in scenario.users.items():
            await put_user(
                session,
                parse_user_id(name),
                world.rules,
                at=at,
                tier=member.tier,
                timezone=member.timezone,
                anchor=member.anchor,
                cycle_months=member.cycle_months,
            )
    await drop_stale_users(world.deps.database, world.deps.redis, world.deps.keys)


def _named(settings: Settings, database: str) -> Settings:
    """*settings* with a database and a key space of their own."""
    url = SecretStr(_database_url(settings.asyncpg_dsn, database))
    prefix = f"replay-{secrets.token_hex(8)}"
    return settings.model_copy(update={"database_url": url, "key_prefix": prefix})


def _database_url(url: str, database: str) -> str:
    base, question, query = url.partition("?")
    scheme, separator, rest = base.partition("://")
    return f"{scheme}{separator}{rest.partition('/')[0]}/{database}{question}{query}"


async def _execute(dsn: str, statement: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def _unlink_all(redis: Redis, prefix: str) -> None:
    found = [key async for key in redis.scan_iter(match=f"{prefix}:*", count=_KEYS_AT_ONCE)]
    for start in range(0, len(found), _KEYS_AT_ONCE):
        await redis.unlink(*found[start : start + _KEYS_AT_ONCE])


@contextmanager
def _temporary_directory(user: SystemUser | None) -> Iterator[Path]:
    """A new directory that PostgreSQL's own user may enter, for as long as the block."""
    bases = [Path(tempfile.gettempdir()), Path("/var/tmp")]  # noqa: S108 -- only as a fallback
    base = next((base for base in bases if user is None or user.may_enter(base)), bases[-1])
    path = Path(tempfile.mkdtemp(prefix="allotment-replay-", dir=base))
    try:
        path.chmod(0o711)  # PostgreSQL may run as another user; what lies in it is closed by itself
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
