"""Folding what was applied into days, months and lifetimes: at what rate, beside applying it."""

from __future__ import annotations

import time
from statistics import median
from typing import TYPE_CHECKING

from bench.admitting import admit_all
from service.rollups import fold_all

if TYPE_CHECKING:
    from bench.report import Numbers
    from bench.scale import Scale
    from bench.stage import Stage

__all__ = ["fold_rate"]

_SECONDS_MAX = 300.0


async def fold_rate(stage: Stage, scale: Scale) -> Numbers:
    """Records folded a second, of a backlog that one fold takes."""
    await fold_all(stage.deps.database, seconds_max=_SECONDS_MAX)
    rates = [await _round(stage, scale.applied_records) for _ in range(scale.rounds)]
    return {"fold_per_second": median(rates)}


async def _round(stage: Stage, records: int) -> float:
    await admit_all(stage, stage.calls.take(records))
    await stage.deps.drain.run(seconds_max=_SECONDS_MAX)
    started = time.perf_counter()
    folded = await fold_all(stage.deps.database, seconds_max=_SECONDS_MAX)
    seconds = time.perf_counter() - started
    assert folded is not None
    assert folded.records == records
    return records / seconds
