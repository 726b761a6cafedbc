"""The job that ends the stretches on a tier whose time is over (seed 004), and counts what changed (seed 002)."""

from __future__ import annotations

import asyncio
import random
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog

from quota.errors import UnknownUserError
from quota.values import parse_user_id
from service.changes import Stores
from service.database import statement
from service.expiry import expire_subscription
from service.subscribed import store_subscribed
from service.tiers import stored_rules

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from quota.rules import Rules
    from worker.deps import Deps

__all__ = ["expire_round", "expire_subscriptions"]

ROUND_SECONDS_MAX = 5.0  # then the next round, some seconds later, goes on
_COUNT_SECONDS_MAX = 2.0
_USERS_MAX = 100  # between two looks at the time: about a second's work
_AT_ONCE = 4  # each keeps a connection for as long as its user stands still
_SETTLE_SECONDS_MAX = 5.0
_log = structlog.get_logger("allotment.subscriptions")


async def expire_subscriptions(ctx: dict[str, Any]) -> int:
    """End what is over, and bring what users' stretches come to up to date; return how many were over."""
    deps: Deps = ctx["deps"]
    try:
        expired = await expire_round(deps)
        await store_subscribed(deps.database, seconds_max=_COUNT_SECONDS_MAX)
    except Exception as error:  # the next round goes on: nothing is held in this job
        deps.metrics.jobs.labels("expire_subscriptions", "failed").inc()
        _log.warning("subscriptions.failed", kind=type(error).__name__, error=str(error))
        return 0
    deps.metrics.jobs.labels("expire_subscriptions", "done").inc()
    return expired


async def expire_round(
    deps: Deps, *, at: datetime | None = None, seconds_max: float = ROUND_SECONDS_MAX
) -> int:
    """End what is over at *at* (None: PostgreSQL's now), as far as the time allows; return how many were.

    Workers that come at once share the work: each stretch is ended by one of them.
    """
    until = time.monotonic() + seconds_max
    rules: Rules | None = None
    after: tuple[datetime | None, UUID | None] = (None, None)
    expired = 0
    while True:
        due = await _due(deps, at, after)
        if due:
            rules = rules or await stored_rules(deps.database)
            assert rules is not None, "a worker does not start without"
            names = [row["name"] for row in due]
            random.shuffle(names)  # workers that come at once seldom meet at a user
            expired += await _expire_all(deps, names, rules, at)
            # What could not be ended is not met again in this round: the others have their turn.
            after = (due[-1]["ends_at"], due[-1]["user_id"])
        if len(due) < _USERS_MAX:
            return expired
        if time.monotonic() >= until:
            _log.info("subscriptions.cut_short", expired=expired)
            return expired


async def _due(
    deps: Deps, at: datetime | None, after: tuple[datetime | None, UUID | None]
) -> list[Any]:
    async with deps.database.connection() as connection:
        now = at or await connection.fetchval("SELECT clock_timestamp()")
        rows = await connection.fetch(
            statement("worker", "due_subscriptions"), now, *after, _USERS_MAX
        )
    return list(rows)


async def _expire_all(deps: Deps, names: list[str], rules: Rules, at: datetime | None) -> int:
    stores = Stores(
        deps.database,
        deps.redis,
        deps.keys,
        settle=partial(deps.drain.run, seconds_max=_SETTLE_SECONDS_MAX),
        roll=deps.quota.roll,
        grace_ms=deps.settings.late_grace * 1000,
    )
    places = asyncio.Semaphore(_AT_ONCE)
    ended = await asyncio.gather(
        *(_expire(deps, stores, name, rules, at, places) for name in names), return_exceptions=True
    )
    for name, one in zip(names, ended, strict=True):
        if isinstance(one, Exception):  # the others go on; this one is tried again
            _log.warning(
                "subscription.not_expired", user=name, kind=type(one).__name__, error=str(one)
            )
        elif isinstance(one, BaseException):
            raise one
    return sum(one is True for one in ended)


async def _expire(
    deps: Deps,
    stores: Stores,
    name: str,
    rules: Rules,
    at: datetime | None,
    places: asyncio.Semaphore,
) -> bool:
    async with places:
        try:
            ended = await expire_subscription(stores, parse_user_id(name), rules, at=at)
        except UnknownUserError:  # erased meanwhile
            return False
    if ended is None:  # prolonged meanwhile, or another worker was first
        return False
    deps.metrics.subscriptions_expired.inc()
    _log.info(
        "subscription.expired",
        user=name,
        subscription=str(ended.id),
        tier=ended.tier,
        next_tier=rules.default_tier,
    )
    return True
