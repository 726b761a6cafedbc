"""Watches the logs for operators, and cuts from them what was applied and is kept long enough."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import structlog

from quota.scripts import call_once
from service.database import DATABASE_ERRORS, durable_transaction, statement
from service.shards import entry_number
from worker.alone import each_alone

if TYPE_CHECKING:
    from collections.abc import Mapping

    from quota.keys import ShardKeys
    from worker.deps import Deps

__all__ = ["trim_logs", "watch_logs"]

_CROWDED = 0.8  # of LOG_BYTES_MAX
_TIMEOUT_S = 5.0
_log = structlog.get_logger("allotment.tidy")


async def watch_logs(deps: Deps) -> None:
    """Bring the gauges of the logs and the tallies of decisions up to date, also while PostgreSQL is away.

    That is when the log grows, and when somebody has to hear of it.

    Raises:
        ShardsFailedError, RedisError
    """
    deps.metrics.log_bytes_max.set(deps.settings.log_bytes_max)
    known = True
    try:
        deps.positions[:] = await _positions(deps)
    except DATABASE_ERRORS as error:
        known = False
        _log.debug("log.position_unknown", kind=type(error).__name__, error=str(error))
    rows = dict(zip(deps.keys.shards, deps.positions, strict=bool(deps.positions)))
    await each_alone(list(rows), lambda shard: _watch(deps, shard, rows[shard], known=known))


async def _watch(deps: Deps, shard: ShardKeys, row: Mapping[str, Any], *, known: bool) -> None:
    size = await deps.redis.memory_usage(shard.log, samples=5)
    deps.metrics.log_bytes.labels(shard.index).set(size or 0)
    position, applied = row["last_entry_id"], row["lines_applied"]
    names = [shard.log, shard.tallies]
    oldest, *flat = await call_once(
        deps.redis,
        "tally",
        names,
        [position, applied if known else ""],
        timeout_s=_TIMEOUT_S,
    )
    age_s = time.time() - entry_number(oldest.decode())[0] / 1000 if oldest else 0
    deps.metrics.oldest_age.labels(shard.index).set(max(0, age_s))
    counts = {name.decode(): int(n) for name, n in zip(flat[::2], flat[1::2], strict=True)}
    deps.metrics.tallies.set(shard.index, counts, epochs=max(0, row["epoch"] - 1))
    deps.metrics.backlog.labels(shard.index).set(max(0, counts.get("lines", 0) - applied))


async def trim_logs(deps: Deps) -> None:
    """Drop entries that were applied, and that entered the log more than REPLAY_SECONDS ago.

    Until then they can be applied again to a PostgreSQL that was set back; but where the log nears its
    bound, all that was applied goes.

    Raises:
        NotDurableError: under synchronous replication, no standby has heard of what was applied.
        ShardsFailedError, RedisError
    """
    seconds, _ = await deps.redis.time()
    kept_ms = (int(seconds) - deps.settings.replay_seconds) * 1000
    positions = await _positions(deps)
    # A position may be that of a commit whose wait for the standby was cancelled. Once a later one was
    # waited for to its end, the standby has that too.
    async with deps.database.connection() as connection, durable_transaction(connection):
        await connection.execute(statement("worker", "leave_mark"))
    last = {
        shard: row["last_entry_id"] for shard, row in zip(deps.keys.shards, positions, strict=True)
    }
    await each_alone(list(last), lambda shard: _trim(deps, shard, last[shard], kept_ms))


async def _trim(deps: Deps, shard: ShardKeys, position: str, kept_ms: int) -> None:
    applied_ms, _ = entry_number(position)
    size = await deps.redis.memory_usage(shard.log, samples=5) or 0
    crowded = 0 < deps.settings.log_bytes_max * _CROWDED < size  # to admit goes before to replay
    # MINID keeps the entry it names: the last one applied stays, and shows where the log stands.
    oldest = position if crowded or applied_ms < kept_ms else f"{kept_ms}-0"
    if applied_ms:
        await call_once(deps.redis, "trim", [shard.log, shard.meta], [oldest], timeout_s=_TIMEOUT_S)


async def _positions(deps: Deps) -> list[Any]:
    async with deps.database.connection() as connection:
        return list(await connection.fetch(statement("worker", "positions")))
