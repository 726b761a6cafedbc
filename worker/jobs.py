"""The arq jobs: each unpacks, calls, counts.  Infrastructure errors become retries, never lost jobs."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import msgspec
import structlog
from arq import Retry

from quota.errors import InvalidValueError, KeyConflictError, UnknownUserError
from service.database import statement
from service.partitions import make_partitions
from service.staleness import drop_stale_users
from service.tiers import publish, stored_rules
from worker.tidy import trim_logs, watch_logs

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from worker.deps import Deps

__all__ = ["drain_log", "keep_partitions", "quarantine_job", "record_usage", "tidy_logs"]

DRAIN_SECONDS_MAX = 5.0  # then the next tick goes on: a stop never waits longer for a round
_RETRY_DELAYS_S = (1, 2, 5, 10, 30, 60)
_log = structlog.get_logger("allotment.jobs")


def counted(job: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Count how *job* ends, and have arq run it again after any error: arq forgets a job that raises."""

    @functools.wraps(job)
    async def run(ctx: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        deps: Deps = ctx["deps"]
        try:
            result = await job(ctx, *args, **kwargs)
        except Exception as error:
            deps.metrics.jobs.labels(job.__name__, "retried").inc()
            attempt = ctx["job_try"]
            delay_s = _RETRY_DELAYS_S[min(attempt, len(_RETRY_DELAYS_S)) - 1]
            _log.warning(
                "job.failed", job=job.__name__, attempt=attempt, retry_s=delay_s, kind=type(error).__name__, error=str(error)
            )
            raise Retry(defer=delay_s) from error
        deps.metrics.jobs.labels(job.__name__, "done").inc()
        return result

    return run


@counted
async def record_usage(
    ctx: dict[str, Any], user_id: Any = None, feature: Any = None, amount: Any = 1, key: Any = None, **payload: Any
) -> None:
    """Move one record from arq into the usage log; stock arq producers enqueue this (DESIGN 8).

    Without a key, the job's id is the key: a job that arq runs twice counts once.
    """
    deps: Deps = ctx["deps"]
    given = {"user_id": user_id, "feature": feature, "amount": amount, "key": key, **payload}
    try:
        await deps.quota.record(user_id, feature, amount, key=key or f"arq:{ctx['job_id']}", **payload)
    except (InvalidValueError, KeyConflictError, UnknownUserError) as error:
        await _quarantine(deps, ctx["job_id"], msgspec.json.encode(given, enc_hook=repr), str(error))
    except TypeError as error:
        await _quarantine(deps, ctx["job_id"], msgspec.json.encode(given, enc_hook=repr), f"not a field: {error}")


@counted
async def quarantine_job(ctx: dict[str, Any], *, raw: bytes, reason: str) -> None:
    """Set aside a job that could not be read; see `service.jobs`."""
    await _quarantine(ctx["deps"], ctx["job_id"], raw, reason)


async def _quarantine(deps: Deps, place: str, raw: bytes, reason: str) -> None:
    async with deps.database.connection() as connection:
        await connection.execute(statement("worker", "quarantine"), "job", [place], [raw], [reason.replace("\0", "\\0")])
    deps.metrics.quarantined.inc()
    _log.warning("job.quarantined", job_id=place, reason=reason)


async def drain_log(ctx: dict[str, Any]) -> int:
    """Apply what the log holds; return how many records. Runs each second on every worker."""
    deps: Deps = ctx["deps"]
    try:
        await _keep_redis_current(deps)
        applied = await deps.drain.run(seconds_max=DRAIN_SECONDS_MAX)
        await watch_logs(deps)
    except Exception as error:  # the next tick tries again: nothing is held in this job
        deps.metrics.jobs.labels("drain_log", "failed").inc()
        _log.warning("drain.failed", kind=type(error).__name__, error=str(error))
        return 0
    deps.metrics.jobs.labels("drain_log", "done").inc()
    return applied


async def _keep_redis_current(deps: Deps) -> None:
    """Publish the rules in force, and drop users that changed, where whoever changed them did not live to."""
    versions = [await deps.redis.hget(shard.meta, "rules") for shard in deps.keys.shards]
    async with deps.database.connection() as connection:
        current = await connection.fetchval(statement("service", "rules_version"))
    if any(version != str(current).encode() for version in versions):
        rules = await stored_rules(deps.database)
        if rules is not None:
            await publish(deps.redis, deps.keys, rules)
    await drop_stale_users(deps.database, deps.redis, deps.keys)


async def tidy_logs(ctx: dict[str, Any]) -> None:
    """Cut from the logs what was applied long enough ago."""
    deps: Deps = ctx["deps"]
    try:
        await trim_logs(deps)
    except Exception as error:  # as above
        _log.warning("tidy.failed", kind=type(error).__name__, error=str(error))


async def keep_partitions(ctx: dict[str, Any]) -> None:
    """Make the partitions of the coming months."""
    deps: Deps = ctx["deps"]
    try:
        async with deps.database.connection() as connection:
            now = await connection.fetchval("SELECT now()")
            made = await make_partitions(connection, now=now)
        if made:
            _log.info("partitions.made", partitions=made)
    except Exception as error:  # the default partition takes the rows meanwhile
        _log.warning("partitions.failed", kind=type(error).__name__, error=str(error))
