"""The arq jobs: each unpacks, calls, counts.  Infrastructure errors become retries, never lost jobs."""

from __future__ import annotations

import functools
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import structlog
from arq import Retry
from redis.exceptions import ResponseError

from quota.errors import InvalidValueError, KeyConflictError, UnknownUserError
from service.database import statement
from service.jobs import RECORD_USAGE, record_arguments, serialize_job
from service.partitions import make_partitions
from service.rollups import fold_all, rollup_lag
from service.staleness import drop_stale_users
from worker.holds import expire_holds
from worker.tidy import trim_logs, watch_logs

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from worker.deps import Deps

__all__ = [
    "drain_log",
    "fold_usage",
    "keep_partitions",
    "quarantine_job",
    "record_usage",
    "tidy_logs",
]

DRAIN_SECONDS_MAX = 5.0  # then the next tick goes on: a stop never waits longer for a round
FOLD_SECONDS_MAX = 4.0  # then the next tick, five seconds after this one, goes on
_RETRY_DELAYS_S = (1, 2, 5, 10, 30, 60)
_log = structlog.get_logger("allotment.jobs")


def counted(job: Callable[..., Awaitable[Any]]) -> Any:
    """Count how *job* ends, and have arq run it again after any error: arq forgets a job that raises."""

    @functools.wraps(job)
    async def run(ctx: dict[str, Any], /, *args: Any, **kwargs: Any) -> Any:
        deps: Deps = ctx["deps"]
        try:
            result = await job(ctx, *args, **kwargs)
        except Exception as error:
            deps.metrics.jobs.labels(job.__name__, "retried").inc()
            attempt = ctx["job_try"]
            delay_s = _RETRY_DELAYS_S[min(attempt, len(_RETRY_DELAYS_S)) - 1]
            _log.warning(
                "job.failed",
                job=job.__name__,
                attempt=attempt,
                retry_s=delay_s,
                kind=type(error).__name__,
                error=str(error),
            )
            raise Retry(defer=delay_s) from error
        deps.metrics.jobs.labels(job.__name__, "done").inc()
        return result

    return run


@counted
async def record_usage(ctx: dict[str, Any], /, *args: Any, **named: Any) -> None:
    """Move one record from arq into the usage log; stock arq producers enqueue this (DESIGN 8).

    Without a key, the job's id is the key: a job that arq runs twice counts once. The arguments are
    taken as they come, because arq drops a job whose call does not fit.
    """
    deps: Deps = ctx["deps"]
    try:
        given = record_arguments(args, named, job_id=ctx["job_id"])
        await deps.quota.record(**given)
    except (InvalidValueError, KeyConflictError, UnknownUserError) as error:
        await _quarantine(ctx, _job_bytes(args, named), str(error))


def _job_bytes(args: Sequence[Any], named: Mapping[str, Any]) -> bytes:
    """The job as a producer could have sent it, so that it can be sent again."""
    try:
        now_ms = time.time_ns() // 1_000_000
        return serialize_job({"f": RECORD_USAGE, "a": args, "k": named, "et": now_ms, "t": None})
    except (TypeError, ValueError, RecursionError):  # MessagePack has keys that JSON has not
        return repr((args, named)).encode(errors="backslashreplace")


@counted
async def quarantine_job(ctx: dict[str, Any], *, raw: bytes, reason: str) -> None:
    """Set aside a job that could not be read; see `service.jobs`."""
    await _quarantine(ctx, raw, reason)


async def _quarantine(ctx: dict[str, Any], raw: bytes, reason: str) -> None:
    """Keep a job, once however often it runs; a job id that is used again is another job."""
    deps: Deps = ctx["deps"]
    place = f"{ctx['job_id']} {ctx['enqueue_time'].isoformat()}"
    texts = [[text.replace("\0", "\\0")] for text in (place, reason)]
    async with deps.database.connection() as connection:
        await connection.execute(
            statement("worker", "quarantine"), "job", texts[0], [raw], texts[1]
        )
    deps.metrics.quarantined.inc()
    _log.warning("job.quarantined", job_id=ctx["job_id"], reason=reason)


async def drain_log(ctx: dict[str, Any]) -> int:
    """Apply what the log holds; return how many records. Runs each second on every worker."""
    deps: Deps = ctx["deps"]
    applied, outcome = 0, "done"
    try:
        await _keep_redis_current(deps)
        await expire_holds(deps)
        applied = await deps.drain.run(seconds_max=DRAIN_SECONDS_MAX)
    except Exception as error:  # the next tick tries again: nothing is held in this job
        outcome = "failed"
        _log.warning("drain.failed", kind=type(error).__name__, error=str(error))
    try:
        await watch_logs(deps)
    except Exception as error:
        outcome = "failed"
        _log.warning("watch.failed", kind=type(error).__name__, error=str(error))
    deps.metrics.jobs.labels("drain_log", outcome).inc()
    return applied


async def _keep_redis_current(deps: Deps) -> None:
    """Have Redis go by our settings and the stored rules, and drop users that changed, if nobody else did."""
    settings = deps.settings
    terms = {
        b"dedupe_ms": settings.dedupe_seconds * 1000,
        b"late_ms": settings.late_grace * 1000,
        b"log_max": settings.log_bytes_max,
    }
    wanted = [b"%d" % term for term in terms.values()]
    for shard in deps.keys.shards:
        with suppress(ResponseError):  # not a hash: the drain begins a new epoch
            epoch, *found = await deps.redis.hmget(shard.meta, "epoch", *terms)
            if epoch is not None and found != wanted:
                await deps.redis.hset(shard.meta, mapping=terms)
    await deps.rules.keep()
    await drop_stale_users(deps.database, deps.redis, deps.keys)


async def fold_usage(ctx: dict[str, Any]) -> int:
    """Fold what was applied into days, months and lifetimes; return how many records."""
    deps: Deps = ctx["deps"]
    try:
        with deps.metrics.fold_seconds.time():
            folded = await fold_all(deps.database, seconds_max=FOLD_SECONDS_MAX, pace=deps.pace)
        deps.metrics.rollup_lag.set(await rollup_lag(deps.database))
    except Exception as error:  # the next tick tries again: a fold is one transaction
        deps.metrics.jobs.labels("fold_usage", "failed").inc()
        _log.warning("fold.failed", kind=type(error).__name__, error=str(error))
        await _export_lag(deps)
        return 0
    deps.metrics.jobs.labels("fold_usage", "done").inc()
    records = 0 if folded is None else folded.records
    deps.metrics.folded.inc(records)
    return records


async def _export_lag(deps: Deps) -> None:
    """Have the gauge grow while folding fails, as far as PostgreSQL can be asked."""
    with suppress(Exception):
        deps.metrics.rollup_lag.set(await rollup_lag(deps.database))


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
