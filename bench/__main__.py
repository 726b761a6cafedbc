"""`python -m bench`: measure, and say what was wanted; it does not judge."""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from typing import TYPE_CHECKING

from rich.console import Console

from bench.admitting import admit_concurrent, admit_vs_ping, memory_per_key, redis_time
from bench.analytics import analytics_queries
from bench.applying import apply_vs_copy
from bench.burning import burn_over_many_grants
from bench.end_to_end import end_to_end_vs_naive, reconcile_vs_without
from bench.folding import fold_rate
from bench.keeping_up import fail_over, lag_at
from bench.loading import cold_loads
from bench.report import Numbers, rounded, show
from bench.scale import FULL, QUICK, SMOKE
from bench.stage import forget_environment, open_stage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.scale import Scale


def main(words: Sequence[str] | None = None) -> None:
    """Measure as *words* say, and print a table or one JSON object."""
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure the numbers of the design, each as a ratio taken in this run, "
        "on servers of its own in a temporary directory.",
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="in a minute, less steady")
    size.add_argument(
        "--smoke", action="store_true", help="to see that it runs: no number means a thing"
    )
    size.add_argument(
        "--analytics",
        nargs="?",
        const=10_000_000,
        type=int,
        metavar="RECORDS",
        help="the named queries alone, over so many logged records (10 million, in twenty minutes)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    given = parser.parse_args(words)
    forget_environment()
    if given.analytics is None:
        numbers = asyncio.run(measure(QUICK if given.quick else SMOKE if given.smoke else FULL))
    else:
        numbers = asyncio.run(measure_analytics(given.analytics))
    numbers = rounded(numbers)
    if given.json:
        print(json.dumps(numbers))
    else:
        show(numbers, console=Console())


async def measure(scale: Scale) -> Numbers:
    """Every row, by its key."""
    console, started = Console(stderr=True), time.perf_counter()
    numbers: Numbers = {"loop_ms": _loop_ms(), **burn_over_many_grants(scale)}
    with console.status("") as status:
        status.update("starting servers")
        async with open_stage(scale) as stage:
            status.update("admitting, one caller")
            numbers |= await admit_vs_ping(stage, scale)
            status.update("admitting, many callers")
            numbers |= await admit_concurrent(stage, scale)
            status.update("admitting, Redis' own time")
            numbers |= await redis_time(stage, scale)
            numbers |= await memory_per_key(stage)
            status.update("applying what was admitted so far")
            await stage.deps.drain.run(seconds_max=300)
            status.update("applying")
            numbers |= await apply_vs_copy(stage, scale)
            status.update("folding")
            numbers |= await fold_rate(stage, scale)
            status.update("end to end")
            numbers |= await end_to_end_vs_naive(stage, scale)
            status.update("end to end, users compared meanwhile")
            numbers |= await reconcile_vs_without(stage, scale)
            half = numbers["end_to_end_per_second"] / 2
            status.update("lag at half load")
            numbers |= await lag_at(stage, scale, per_second=half)
            status.update("killing a worker")
            numbers |= await fail_over(stage, scale, per_second=half)
            status.update("loading users")
            numbers |= await cold_loads(stage, scale)
    return numbers | {"seconds": time.perf_counter() - started}


async def measure_analytics(records: int) -> Numbers:
    """The named queries, by their keys; a hundred records a user."""
    with Console(stderr=True).status("starting servers") as status:
        return await analytics_queries(
            records=records, users=max(1, records // 100), tell=status.update
        )


def _loop_ms() -> float:
    """Milliseconds of a million turns of a loop: how fast this machine is just now."""
    started = time.perf_counter()
    for _ in range(1_000_000):
        pass
    return 1000 * (time.perf_counter() - started)


if __name__ == "__main__":
    main()
