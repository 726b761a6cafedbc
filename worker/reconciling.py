"""The job that goes through the users in Redis, compares them with PostgreSQL, and heals those that differ."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import structlog

from quota.values import MICRO
from service.reconcile import DRIFTED, OUTCOMES, Checked, Reconciler
from service.sweep import next_users, read_cursor

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from service.metrics import Metrics
    from worker.deps import Deps

__all__ = ["reconcile_round", "reconcile_users"]

ROUND_SECONDS_MAX = 5.0  # then the next round, ten seconds later, goes on
_USERS_AT_ONCE = 250  # between two looks at the time: a tenth of a second's work
_BACKLOG_MAX = 20_000  # lines: to read more would cost a round more than all the rest of it
_TRIES_MAX = 3  # two that agree are needed to call it drift; who is busy has another round
_log = structlog.get_logger("allotment.reconcile")


async def reconcile_users(ctx: dict[str, Any]) -> int:
    """Compare the next users; return how many were healed."""
    deps: Deps = ctx["deps"]
    users_max = deps.settings.reconcile_users_per_round
    if not users_max:
        return 0
    try:
        healed = await reconcile_round(deps, users_max=users_max)
    except Exception as error:  # the next round goes on: nothing is held in this job
        deps.metrics.jobs.labels("reconcile_users", "failed").inc()
        _log.warning("reconcile.failed", kind=type(error).__name__, error=str(error))
        return 0
    deps.metrics.jobs.labels("reconcile_users", "done").inc()
    return healed


async def reconcile_round(
    deps: Deps, *, users_max: int, now_ms: int = 0, seconds_max: float = ROUND_SECONDS_MAX
) -> int:
    """Compare about *users_max* users, as many as the time allows, and heal; return how many differed.

    How far it went is kept in Redis, so that workers share one sweep and a restart goes on with it.
    """
    until = time.monotonic() + seconds_max
    cursor = await read_cursor(deps.redis, deps.keys)
    users, cursor = await next_users(deps.redis, deps.keys, cursor, users_max=users_max)
    # First, so that a worker that comes at the same time or a user that makes us fail do not hold it up.
    await deps.redis.set(deps.keys.sweep, cursor)
    reconciler = Reconciler(
        deps.database,
        deps.redis,
        deps.keys,
        grace_ms=deps.settings.late_grace * 1000,
        backlog_max=_BACKLOG_MAX,
        tries_max=_TRIES_MAX,
    )
    checked: list[Checked] = []
    for start in range(0, len(users), _USERS_AT_ONCE):
        if start and time.monotonic() >= until:
            _log.info("reconcile.cut_short", users=len(users), compared=start)
            break
        found = await reconciler.check(users[start : start + _USERS_AT_ONCE], now_ms=now_ms)
        deps.metrics.healed.inc(await reconciler.heal(found))
        checked += found
    _export(deps.metrics, checked)
    return sum(one.outcome == DRIFTED for one in checked)


def _export(metrics: Metrics, checked: Sequence[Checked]) -> None:
    for outcome in OUTCOMES:
        count = sum(one.outcome == outcome for one in checked)
        metrics.reconciled.labels(outcome).inc(count)
        if outcome == DRIFTED:
            metrics.drift_users.set(count)
    metrics.drift_units.set(_drift(checked, "units"))
    metrics.drift_credits.set(_drift(checked, "credits") / MICRO)


def _drift(checked: Iterable[Checked], kind: str) -> int:
    return sum(abs(each.drift) for one in checked for each in one.differences if each.kind == kind)
