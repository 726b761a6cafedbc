"""Applying a backlog of the usage log, against COPY of the same rows."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from statistics import median
from typing import TYPE_CHECKING, Any

from bench.admitting import admit_all
from worker.batch import COLUMNS

if TYPE_CHECKING:
    from collections.abc import Sequence

    import asyncpg

    from bench.report import Numbers
    from bench.scale import Scale
    from bench.stage import Stage

__all__ = ["apply_vs_copy"]

_APPLY_SECONDS_MAX = 300.0
_STREAMS = 2  # shards that a worker applies at once


async def apply_vs_copy(stage: Stage, scale: Scale) -> Numbers:
    """Records applied a second, by rows copied a second into a table like `usage_logs`.

    COPY runs on one connection, as one pass over the rows; `apply_vs_copy_on_two` is against two
    connections, which is what a worker uses.
    """
    async with stage.deps.database.connection() as connection:
        await _make_twin(connection)
    rounds = [await _round(stage, scale) for _ in range(scale.rounds)]
    applied, copied, copied_twice = zip(*rounds, strict=True)
    return {
        "apply_vs_copy": median(a / c for a, c in zip(applied, copied, strict=True)),
        "apply_vs_copy_on_two": median(a / c for a, c in zip(applied, copied_twice, strict=True)),
        "apply_per_second": median(applied),
        "copy_per_second": median(copied),
    }


async def _make_twin(connection: asyncpg.Connection[Any]) -> None:
    """A table with the columns, partitions and indexes of `usage_logs`."""
    now = datetime.now(UTC)
    start = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    end = start.replace(year=now.year + now.month // 12, month=now.month % 12 + 1)
    await connection.execute(
        f"""
        CREATE TABLE copied (LIKE usage_logs INCLUDING ALL) PARTITION BY RANGE (created_at);
        CREATE TABLE copied_default PARTITION OF copied DEFAULT;
        CREATE TABLE copied_month PARTITION OF copied FOR VALUES FROM ('{start}') TO ('{end}');
        """
    )


async def _round(stage: Stage, scale: Scale) -> tuple[float, float, float]:
    """Records a second: applied, copied on one connection, copied on two."""
    since = datetime.now(UTC).replace(microsecond=0)
    before = sum(await stage.applied())
    await admit_all(stage, stage.calls.take(scale.applied_records))
    started = time.perf_counter()
    applied = await stage.deps.drain.run(seconds_max=_APPLY_SECONDS_MAX)
    apply_s = time.perf_counter() - started
    assert applied == scale.applied_records == sum(await stage.applied()) - before
    rows = await _rows(stage, since, scale.applied_records)
    size = min(stage.settings.apply_records_max, len(rows) // stage.settings.shards)
    batches = [rows[at : at + size] for at in range(0, len(rows), size)]
    copy_s = await _copy(stage, batches, streams=1)
    copy_twice_s = await _copy(stage, batches, streams=_STREAMS)
    return applied / apply_s, len(rows) / copy_s, len(rows) / copy_twice_s


async def _rows(stage: Stage, since: datetime, count: int) -> list[tuple[Any, ...]]:
    """The rows that were applied last, in the order in which they were written."""
    columns = ", ".join(COLUMNS).replace("metadata", "metadata::text")  # as COPY is given it
    query = f"SELECT {columns} FROM usage_logs WHERE created_at >= $1 ORDER BY tableoid, ctid"  # noqa: S608
    async with stage.deps.database.connection() as connection:
        rows = await connection.fetch(query, since)
    return [tuple(row) for row in rows[-count:]]


async def _copy(
    stage: Stage, batches: Sequence[Sequence[tuple[Any, ...]]], *, streams: int
) -> float:
    """Seconds to copy each of *batches* in a transaction; the twin is empty before."""
    async with stage.deps.database.connection() as connection:
        await connection.execute("TRUNCATE copied")

    async def stream(number: int) -> None:
        async with stage.deps.database.connection() as connection:
            for batch in batches[number::streams]:
                await connection.copy_records_to_table("copied", records=batch, columns=COLUMNS)

    started = time.perf_counter()
    await asyncio.gather(*(stream(number) for number in range(streams)))
    return time.perf_counter() - started
