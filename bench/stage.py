"""Fresh servers with tiers, users and credits, in a directory that is removed afterwards."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from redis.asyncio import Redis

from bench.load import TIERS, Calls
from quota import Quota
from quota.rules import Rules
from quota.values import MICRO, User, parse_user_id
from service.database import Database
from service.embedded import EmbeddedServers
from service.log import configure_logging
from service.migrations import upgrade
from service.partitions import make_partitions
from service.settings import Settings, load_settings
from service.system_user import postgres_user
from service.tiers import apply_rules
from worker.deps import open_deps

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    import asyncpg

    from bench.scale import Scale
    from worker.deps import Deps

__all__ = ["Stage", "forget_environment", "open_directory", "open_stage"]

_GRANT = 1_000_000_000 * MICRO  # never used up
_PROMO = 3 * MICRO  # used up soon: some records are paid by two grants
_LOADED_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Stage:
    """What a row is measured on; *redis* and *quota* are those of an application."""

    directory: Path
    settings: Settings
    deps: Deps
    redis: Redis
    quota: Quota
    users: list[str]
    calls: Calls

    async def applied(self) -> list[int]:
        """How many lines of each shard are committed."""
        async with self.deps.database.connection() as connection:
            rows = await connection.fetch("SELECT lines_applied FROM usage_shards ORDER BY shard")
        return [row["lines_applied"] for row in rows]


def forget_environment() -> None:
    """Take our settings out of the environment: they would measure something else."""
    for name in (*Settings.model_fields, "allotment_data_dir"):
        os.environ.pop(name.upper(), None)


@asynccontextmanager
async def open_stage(scale: Scale) -> AsyncIterator[Stage]:
    """Start the servers and fill them; stop them and leave nothing behind."""
    with open_directory() as directory:
        async with EmbeddedServers(directory / "servers") as servers:
            settings = load_settings(log_level="warning").served_by(
                database_url=servers.database_url, redis_url=servers.redis_url
            )
            configure_logging(settings)
            users = [f"user-{number:05d}" for number in range(scale.users)]
            await _fill(settings, users)
            async with (
                open_deps(settings) as deps,
                Redis.from_url(settings.quota_redis) as redis,
                Quota(redis, loader=deps.loader) as quota,
            ):
                await _load(deps, users)
                yield Stage(directory, settings, deps, redis, quota, users, Calls(users))


@contextmanager
def open_directory() -> Iterator[Path]:
    """A directory that PostgreSQL's own user may enter, as a private TMPDIR may be closed to it."""
    user = postgres_user()
    bases = [Path(tempfile.gettempdir()), Path("/var/tmp")]  # noqa: S108 - mkdtemp makes it ours
    base = next((base for base in bases if user is None or user.may_enter(base)), bases[0])
    path = Path(tempfile.mkdtemp(prefix="allotment-bench-", dir=base))
    try:
        path.chmod(0o711)
        yield path
    finally:
        shutil.rmtree(path)


async def _fill(settings: Settings, users: list[str]) -> None:
    await upgrade(settings.sqlalchemy_url)
    async with Database(settings.sqlalchemy_url, pool_max=2) as database:
        rules = await apply_rules(database, Rules.from_document(TIERS))
        async with database.connection() as connection:
            await make_partitions(connection, now=datetime.now(UTC))
            await _make_users(connection, [parse_user_id(user) for user in users], rules)
            await connection.execute("ANALYZE users, credit_grants")


async def _make_users(connection: asyncpg.Connection[Any], users: list[User], rules: Rules) -> None:
    """As `put_user` and `add_grant` would, two grants each; ten thousand of them in a moment."""
    now = datetime.now(UTC)
    begun, ends = now - timedelta(days=10), now + timedelta(days=300)
    rows: list[tuple[Any, ...]] = [
        (user.id, user.external_id, rules.default_tier, begun - timedelta(minutes=number))
        for number, user in enumerate(users)  # billing cycles of their own
    ]
    columns = ("id", "external_id", "tier", "anchor")
    await connection.copy_records_to_table("users", records=rows, columns=columns)
    rows = []
    for user in users:
        rows += [
            (user.id, uuid4(), _PROMO, _PROMO, 1, "promo", begun, ends, begun),
            (user.id, uuid4(), _GRANT, _GRANT, 2, "purchased", begun, None, begun),
        ]
    of_grant = ("user_id", "id", "amount_micro", "left_micro", "priority", "kind")
    times = ("effective_at", "expires_at", "created_at")
    await connection.copy_records_to_table(
        "credit_grants", records=rows, columns=(*of_grant, *times)
    )


async def _load(deps: Deps, users: list[str]) -> None:
    """Bring every user into Redis, so that no load falls into a measurement."""
    for shard in deps.keys.shards:
        parsed = (parse_user_id(user) for user in users)
        mine = [user for user in parsed if deps.keys.shard_of(user.id) is shard]
        for start in range(0, len(mine), _LOADED_AT_ONCE):
            some = mine[start : start + _LOADED_AT_ONCE]
            await deps.loader.load_users(deps.keys, shard, some, now_ms=0)
