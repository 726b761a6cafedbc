"""Empties the usage log into PostgreSQL, shard by shard, while reading ahead.

The next run is read and decoded while PostgreSQL works on this one. Workers share the shards
through the fence: whoever finds one taken leaves it.
"""

from __future__ import annotations

import asyncio
import gc
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import structlog

from service.database import statement
from service.shards import mend_shard, shard_is_sound
from service.staleness import drop_stale_users
from service.usage_log import NewerVersionError, read_entries
from worker.apply import apply_run
from worker.standstill import Standstill

if TYPE_CHECKING:
    from collections.abc import Iterator

    from quota.keys import Keys, ShardKeys
    from quota.scripts import Client
    from service.database import Database
    from service.metrics import Metrics
    from service.usage_log import Entries
    from worker.apply import Applied

__all__ = ["Drain"]

_SHARDS_AT_ONCE = 2  # each keeps a connection and a core of PostgreSQL busy
_log = structlog.get_logger("allotment.drain")


class Drain:
    """One worker's share of emptying the log; one round at a time."""

    def __init__(
        self,
        database: Database,
        redis: Client,
        keys: Keys,
        metrics: Metrics,
        *,
        lines_max: int,
        dedupe_ms: int,
        late_grace_ms: int,
    ) -> None:
        self._database = database
        self._redis = redis
        self._keys = keys
        self._metrics = metrics
        self._lines_max = lines_max
        self._dedupe_ms = dedupe_ms
        self._late_grace_ms = late_grace_ms
        self._standstill = Standstill(database, metrics)
        self._round = asyncio.Lock()
        self._places = asyncio.Semaphore(_SHARDS_AT_ONCE)

    async def run(self, *, seconds_max: float) -> int:
        """Apply until every log is empty or the time is up; return how many records were applied.

        A round that finds another one under way in this process leaves the work to it. A shard that
        fails keeps none of the others from being applied.

        Raises:
            Exception: what the first of the shards that failed did so with, when the others are done.
        """
        if self._round.locked():
            return 0
        async with self._round:
            until = time.monotonic() + seconds_max
            rounds = [self._drain_shard(shard, until) for shard in self._keys.shards]
            with _collector_at_rest():
                counts = await asyncio.gather(*rounds, return_exceptions=True)
        failures = [
            self._failed(shard, count)
            for shard, count in enumerate(counts)
            if isinstance(count, BaseException)
        ]
        if failures:
            raise failures[0]
        return sum(count for count in counts if isinstance(count, int))

    def _failed(self, shard: int, error: BaseException) -> BaseException:
        self._metrics.apply_failures.inc()
        _log.warning("apply.failed", shard=shard, kind=type(error).__name__, error=str(error))
        return error

    async def _drain_shard(self, shard: ShardKeys, until: float) -> int:
        async with self._places:
            row = await self._state(shard)
            await self._standstill.look(shard.index, locked_by=row["locked_by"])
            if not await shard_is_sound(
                self._redis, self._keys, shard, epoch=row["epoch"], position=row["last_entry_id"]
            ):
                await mend_shard(
                    self._database,
                    self._redis,
                    self._keys,
                    shard,
                    dedupe_ms=self._dedupe_ms,
                    late_ms=self._late_grace_ms,
                )
                row = await self._state(shard)  # it may go on from further back
            try:
                return await self._apply_log(shard, row["last_entry_id"], until)
            except NewerVersionError as error:
                _log.error("log.newer_version", shard=shard.index, error=str(error))
                return 0

    async def _state(self, shard: ShardKeys) -> Any:
        async with self._database.connection() as connection:
            row = await connection.fetchrow(statement("service", "shard_position"), shard.index)
        assert row is not None, "make_shards made every row at start"
        return row

    async def _apply_log(self, shard: ShardKeys, position: str, until: float) -> int:
        count = 0
        run = await self._read(shard, position)
        while run.last != run.after:
            async with asyncio.TaskGroup() as group:
                ahead = group.create_task(self._read_ahead(shard, run.last))
                applied = await self._apply(shard, run)
            if applied is None:
                return count
            count += applied.applied
            if applied.stale_users:
                await drop_stale_users(self._database, self._redis, self._keys)
            if time.monotonic() >= until:
                return count
            run = ahead.result() or await self._read(shard, run.last)
        return count

    async def _read(self, shard: ShardKeys, after: str) -> Entries:
        return await read_entries(self._redis, shard, after=after, lines_max=self._lines_max)

    async def _read_ahead(self, shard: ShardKeys, after: str) -> Entries | None:
        try:
            return await self._read(shard, after)
        except NewerVersionError:
            return None  # said when its turn comes; this run is to be applied first

    async def _apply(self, shard: ShardKeys, run: Entries) -> Applied | None:
        started = time.perf_counter()
        applied = await apply_run(
            self._database, shard.index, run, late_grace_ms=self._late_grace_ms
        )
        if applied is not None:
            metrics, seconds = self._metrics, time.perf_counter() - started
            metrics.applied.inc(applied.applied)
            metrics.duplicates.inc(applied.duplicates)
            metrics.quarantined.inc(applied.quarantined)
            metrics.batch_size.observe(applied.admitted)
            metrics.batch_seconds.observe(seconds)
            log = _log.warning if applied.quarantined else _log.debug
            log(
                "usage.applied",
                shard=shard.index,
                records=applied.applied,
                duplicates=applied.duplicates,
                quarantined=applied.quarantined,
                seconds=round(seconds, 3),
            )
        return applied


@contextmanager
def _collector_at_rest() -> Iterator[None]:
    """Keep the garbage collector off for a round, which is seconds.

    A run is half a million objects without a cycle among them: looking through them again and again
    takes a quarter of the time that Python spends on applying.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
