"""How much is measured: enough for steady numbers, little enough for a minute, or just to see that it runs."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FULL", "QUICK", "SMOKE", "Scale"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Sizes of one run; each row is the median of *rounds* rounds."""

    rounds: int
    users: int = 10_000  # of DESIGN 12
    applied_records: int  # in the log before each round of applying
    end_to_end_records: int  # a drain starts each second: fewer would measure the wait for it
    reconcile_rounds: int
    naive_jobs: int  # the rate is what counts
    ping_calls: int
    concurrent_tasks: int = 500
    concurrent_records: int
    redis_calls: int
    burns: int
    lag_seconds: float
    loads: int
    large_backlog: bool  # a million lines more, which take their time to be made


FULL = Scale(
    rounds=5,
    applied_records=160_000,
    end_to_end_records=200_000,
    reconcile_rounds=3,
    naive_jobs=2_000,
    ping_calls=3_000,
    concurrent_records=100_000,
    redis_calls=300,
    burns=300,
    lag_seconds=15,
    loads=200,
    large_backlog=True,
)
QUICK = Scale(
    rounds=2,
    applied_records=30_000,
    end_to_end_records=40_000,
    reconcile_rounds=1,
    naive_jobs=300,
    ping_calls=1_000,
    concurrent_records=20_000,
    redis_calls=100,
    burns=50,
    lag_seconds=2,
    loads=50,
    large_backlog=False,
)
SMOKE = Scale(
    rounds=1,
    users=500,
    applied_records=2_000,
    end_to_end_records=2_000,
    reconcile_rounds=1,
    naive_jobs=30,
    ping_calls=100,
    concurrent_tasks=50,
    concurrent_records=1_000,
    redis_calls=10,
    burns=5,
    lag_seconds=1,
    loads=5,
    large_backlog=False,
)
