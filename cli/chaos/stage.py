"""Everything of a run: servers of its own in a directory of its own, workers, producers; all gone at its end."""

from __future__ import annotations

import shutil
import tempfile
import time
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from redis.asyncio import Redis

from cli.chaos.players import ProducerPlayer, WorkerPlayer
from cli.chaos.producer import Part
from cli.demo.people import move_in, people
from cli.demo.supervisor import kept_running
from quota.client import Quota
from quota.keys import Keys
from service.database import Database, statement
from service.embedded import EmbeddedServers
from service.migrations import upgrade
from service.settings import Settings, load_settings
from service.system_user import postgres_user
from service.tiers import apply_rules, read_tiers_file

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

__all__ = ["Stage", "running_stage"]

_TIERS = Path(__file__).with_name("tiers.toml")
_USERS, _WORKERS, _PRODUCERS = 60, 2, 3
_POOL_MAX = 4
_TIMEOUT_S = 5.0  # of a call of ours: everything competes for the same cores


@dataclass(frozen=True, slots=True)
class Stage:
    """What a run works with; servers and processes are taken down by its context."""

    seed: int
    servers: EmbeddedServers
    settings: Settings
    database: Database
    redis: Redis
    keys: Keys
    quota: Quota
    users: tuple[str, ...]
    workers: list[WorkerPlayer]
    producers: list[ProducerPlayer]
    tell: Callable[[str], object]

    async def behind(self) -> int:
        """How many shards have entries in their log that are not applied."""
        async with self.database.connection() as connection:
            rows = await connection.fetch(statement("worker", "positions"))
        waiting = [
            await self.redis.xrange(shard.log, min=f"({row['last_entry_id']}", count=1)
            for shard, row in zip(self.keys.shards, rows, strict=True)
        ]
        return sum(map(bool, waiting))


@asynccontextmanager
async def running_stage(seed: int, *, tell: Callable[[str], object]) -> AsyncIterator[Stage]:
    """Start it all; nothing is left behind, however the block ends.

    Raises:
        ServerError, SettingsError
    """
    async with AsyncExitStack() as stack:
        directory = stack.enter_context(_temporary_directory())
        tell("starting PostgreSQL and Redis, which syncs each write (DURABILITY=always)")
        servers = EmbeddedServers(directory / "servers", durability="always")
        await stack.enter_async_context(servers)
        settings = _settings(servers)
        await upgrade(settings.asyncpg_dsn)
        database = await stack.enter_async_context(
            Database(settings.sqlalchemy_url, pool_max=_POOL_MAX)
        )
        redis = await stack.enter_async_context(
            Redis.from_url(settings.quota_redis, socket_timeout=_TIMEOUT_S)
        )
        quota = await stack.enter_async_context(
            Quota.from_url(
                settings.quota_redis,
                prefix=settings.key_prefix,
                shards=settings.shards,
                timeout_s=_TIMEOUT_S,
            )
        )
        await apply_rules(database, read_tiers_file(_TIERS))
        everybody = people(_USERS, Random(seed))  # noqa: S311 - not a secret
        await move_in(database, everybody)
        users = tuple(person.name for person in everybody)
        keys = Keys(settings.key_prefix, settings.shards)
        workers = [WorkerPlayer(settings, number, tell=tell) for number in range(_WORKERS)]
        parts = [_part(number, seed, users, settings, directory) for number in range(_PRODUCERS)]
        producers = [ProducerPlayer(settings, part, tell=tell) for part in parts]
        await stack.enter_async_context(kept_running([*workers, *producers]))
        yield Stage(
            seed, servers, settings, database, redis, keys, quota, users, workers, producers, tell
        )


def _settings(servers: EmbeddedServers) -> Settings:
    """Those of the environment, but for the servers, which are the run's own."""
    named = ("database_url", "redis_url", "quota_redis_url", "queue_redis_url")
    settings = load_settings().model_copy(update=dict.fromkeys(named))
    return settings.served_by(database_url=servers.database_url, redis_url=servers.redis_url)


def _part(
    number: int, seed: int, users: tuple[str, ...], settings: Settings, directory: Path
) -> Part:
    return Part(
        producer=number,
        seed=seed,
        began_ms=time.time_ns() // 1_000_000,
        users=users,
        redis=settings.quota_redis,
        prefix=settings.key_prefix,
        shards=settings.shards,
        book=str(directory / f"producer-{number}.jsonl"),
    )


@contextmanager
def _temporary_directory() -> Iterator[Path]:
    """A new directory that PostgreSQL's own user may enter, for as long as the block."""
    user = postgres_user()
    bases = [Path(tempfile.gettempdir()), Path("/var/tmp")]  # noqa: S108 -- only as a fallback
    base = next((base for base in bases if user is None or user.may_enter(base)), bases[-1])
    path = Path(tempfile.mkdtemp(prefix="allotment-chaos-", dir=base))
    try:
        path.chmod(0o711)  # PostgreSQL may run as another user; what lies in it is closed by itself
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
