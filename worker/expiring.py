"""The job that ends the stretches on a tier whose time is over (seed 004), and counts what changed (seed 002)."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass
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
_USERS_MAX = 100  # between two looks at what is over
_AT_ONCE = 4  # each keeps a connection for as long as its user stands still
_SETTLE_SECONDS_MAX = 5.0
_WAIT_S = 2.0  # for a user to stand still: the next round comes soon, and nobody waits for this one
_NOT_ENDED_MAX = 10_000  # remembered
_log = structlog.get_logger("allotment.subscriptions")


async def expire_subscriptions(ctx: dict[str, Any]) -> int:
    """End what is over, and bring what users' stretches come to up to date; return how many were over."""
    deps: Deps = ctx["deps"]
    expired, outcome = 0, "done"
    try:
        expired = await expire_round(deps)
    except Exception as error:  # the next round goes on: nothing is held in this job
        outcome = "failed"
        _log.warning("subscriptions.failed", kind=type(error).__name__, error=str(error))
    try:
        await store_subscribed(deps.database, seconds_max=_COUNT_SECONDS_MAX)
        async with deps.database.connection() as connection:
            overdue = await connection.fetchval(statement("worker", "subscriptions_overdue"))
        deps.metrics.subscriptions_overdue.set(overdue)
    except Exception as error:
        outcome = "failed"
        _log.warning("subscriptions.not_counted", kind=type(error).__name__, error=str(error))
    deps.metrics.jobs.labels("expire_subscriptions", outcome).inc()
    return expired


async def expire_round(
    deps: Deps, *, at: datetime | None = None, seconds_max: float = ROUND_SECONDS_MAX
) -> int:
    """End what is over at *at* (None: PostgreSQL's now), as far as the time allows; return how many were.

    Workers that come at once share the work: each stretch is ended by one of them. Whose stretch could not be ended
    comes after all the others the next time.
    """
    one_round = _Round(deps, at, time.monotonic() + seconds_max, frozenset(deps.not_ended))
    if not await one_round.end_all(failed_before=False):
        _log.info("subscriptions.cut_short", expired=one_round.expired)
    elif one_round.failed_before:
        await one_round.end_all(failed_before=True)
    return one_round.expired


@dataclass(slots=True)
class _Round:
    """One look at what is over; no user is begun after *until*, but for the first."""

    deps: Deps
    at: datetime | None
    until: float
    failed_before: frozenset[UUID]
    begun: int = 0
    expired: int = 0

    @property
    def is_over(self) -> bool:
        return self.begun > 0 and time.monotonic() >= self.until

    async def end_all(self, *, failed_before: bool) -> bool:
        """End what is over of those users who failed before, or of the others; False: the time was up."""
        after: tuple[datetime | None, UUID | None] = (None, None)
        rules: Rules | None = None
        while not self.is_over:
            due = await self._due(after, failed_before=failed_before)
            if due:
                rules = rules or await stored_rules(self.deps.database)
                assert rules is not None, "a worker does not start without"
                # What could not be ended is not met again in this round: the others have their turn.
                after = (due[-1]["ends_at"], due[-1]["user_id"])
                random.shuffle(due)  # workers that come at once seldom meet at a user
                await self._expire_all(due, rules)
            if len(due) < _USERS_MAX:
                return not self.is_over
        return False

    async def _due(
        self, after: tuple[datetime | None, UUID | None], *, failed_before: bool
    ) -> list[Any]:
        async with self.deps.database.connection() as connection:
            now = self.at or await connection.fetchval("SELECT clock_timestamp()")
            rows = await connection.fetch(
                statement("worker", "due_subscriptions"),
                now,
                *after,
                _USERS_MAX,
                list(self.failed_before),
                failed_before,
            )
        return list(rows)

    async def _expire_all(self, due: list[Any], rules: Rules) -> None:
        deps = self.deps
        stores = Stores(
            deps.database,
            deps.redis,
            deps.keys,
            settle=partial(deps.drain.run, seconds_max=_SETTLE_SECONDS_MAX),
            roll=deps.quota.roll,
            grace_ms=deps.settings.late_grace * 1000,
            wait_s=_WAIT_S,
        )
        places = asyncio.Semaphore(_AT_ONCE)
        ended = await asyncio.gather(
            *(self._expire(stores, row["name"], rules, places) for row in due),
            return_exceptions=True,
        )
        for row, one in zip(due, ended, strict=True):
            if isinstance(one, Exception):  # the others go on; this one is tried again
                self._remember(row["user_id"])
                _log.warning(
                    "subscription.not_expired",
                    user=row["name"],
                    kind=type(one).__name__,
                    error=str(one),
                )
            elif isinstance(one, BaseException):
                raise one
            elif one is not None:
                deps.not_ended.discard(row["user_id"])
                self.expired += one

    def _remember(self, user_id: UUID) -> None:
        if len(self.deps.not_ended) < _NOT_ENDED_MAX:
            self.deps.not_ended.add(user_id)

    async def _expire(
        self, stores: Stores, name: str, rules: Rules, places: asyncio.Semaphore
    ) -> bool | None:
        """Whether this has ended the stretch of the user *name*; None: there was no time for it."""
        async with places:
            if self.is_over:
                return None
            self.begun += 1
            try:
                ended = await expire_subscription(stores, parse_user_id(name), rules, at=self.at)
            except UnknownUserError:  # erased meanwhile
                return False
        if ended is None:  # prolonged meanwhile, or another worker was first
            return False
        self.deps.metrics.subscriptions_expired.inc()
        _log.info(
            "subscription.expired",
            user=name,
            subscription=str(ended.id),
            tier=ended.tier,
            next_tier=rules.default_tier,
        )
        return True
