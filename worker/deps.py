"""What a worker's jobs work with, built once in `worker.main`."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from quota.client import Quota
from quota.keys import Keys
from service.database import Database
from service.loading import DatabaseLoader
from service.metrics import Metrics
from service.pace import Pace
from service.rules_in_force import RulesKeeper
from service.shards import NoTiersError, make_shards
from service.tiers import stored_rules
from worker.drain import Drain

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from uuid import UUID

    from quota.scripts import Client
    from service.settings import Settings

__all__ = ["Deps", "open_deps"]

SOCKET_TIMEOUT_S = (
    5.0  # a frozen Redis must not hang the worker; longer than any blocking read of ours
)
_CONNECT_TIMEOUT_S = 2.0
_SETTLE_SECONDS_MAX = 5.0  # of applying the log, before a change to a user is given up


@dataclass(frozen=True, slots=True)
class Deps:
    """Connections, and what is built on them."""

    settings: Settings
    database: Database
    redis: Client
    keys: Keys
    loader: DatabaseLoader
    quota: Quota
    drain: Drain
    rules: RulesKeeper
    metrics: Metrics
    registry: CollectorRegistry
    # What this worker knows of users who take long to be counted anew.
    pace: Pace = field(default_factory=Pace)
    # Users whose stretch on a tier could not be ended when this worker tried last: the others go first.
    not_ended: set[UUID] = field(default_factory=set)
    # How far each shard was applied when PostgreSQL said so last: what the gauges go by while it is away.
    positions: list[Mapping[str, Any]] = field(default_factory=list)


@asynccontextmanager
async def open_deps(settings: Settings) -> AsyncIterator[Deps]:
    """Connect, make the shards' rows, and close everything afterwards.

    Raises:
        NoTiersError: no tiers were applied yet.
        ValueError: the database was set up with another number of shards.
    """
    redis = Redis.from_url(
        settings.quota_redis,
        socket_timeout=SOCKET_TIMEOUT_S,
        socket_connect_timeout=_CONNECT_TIMEOUT_S,
    )
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    keys = Keys(settings.key_prefix, settings.shards)
    dedupe_ms = settings.dedupe_seconds * 1000
    async with (
        Database(settings.sqlalchemy_url, pool_max=settings.database_pool_max) as database,
        redis,
    ):
        await make_shards(database, settings.shards)
        if await stored_rules(database) is None:
            raise NoTiersError
        late_ms = settings.late_grace * 1000
        drain = Drain(
            database,
            redis,
            keys,
            metrics,
            lines_max=settings.apply_records_max,
            dedupe_ms=dedupe_ms,
            late_grace_ms=late_ms,
        )
        loader = DatabaseLoader(
            database,
            redis,
            auto_provision=settings.auto_provision,
            dedupe_ms=dedupe_ms,
            late_ms=late_ms,
            settle=partial(drain.run, seconds_max=_SETTLE_SECONDS_MAX),
        )
        quota = Quota(
            redis,
            prefix=settings.key_prefix,
            shards=settings.shards,
            loader=loader,
            on_outage=False,  # a job that is run again keeps its record better than our memory
        )
        rules = RulesKeeper(database, redis, keys)
        async with quota:
            yield Deps(
                settings, database, redis, keys, loader, quota, drain, rules, metrics, registry
            )
