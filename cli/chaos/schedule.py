"""When what is broken: a function of the seed alone."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

__all__ = ["KINDS", "Fault", "schedule"]

# Every kind comes before any comes again; some are likelier then.
KINDS = (
    "worker_killed",
    "worker_terminated",
    "worker_paused",
    "producer_killed",
    "producer_paused",
    "postgres_killed",
    "postgres_stopped",
    "postgres_paused",
    "backends_terminated",
    "redis_killed",
    "redis_stopped",
    "redis_paused",
    "redis_disconnected",
    "redis_emptied",
)
_WARM_UP_S = 1.0
_APART_S = 1.2  # in the mean; a short run has them closer, so that each kind comes
_DOWN_S_MAX = 2.5  # of a server
_PAUSED_S_MAX = 3.5
_LONG_PAUSE_S = 12.0  # a worker that sleeps longer than PostgreSQL waits for it
_LONG_PAUSES, _LONG_PAUSE_SECONDS_MIN = 0.15, 45


@dataclass(frozen=True, slots=True)
class Fault:
    """At *at_s* into the run, *kind* happens to the *target*-th of its kind, for *down_s* where it lasts."""

    at_s: float
    kind: str
    target: int
    down_s: float


def schedule(seconds: int, seed: int) -> list[Fault]:
    """The faults of a run of so many *seconds*, in order."""
    random = Random(seed)  # noqa: S311 - a schedule that can be repeated is no secret
    count = max(len(KINDS), round(seconds / _APART_S))
    kinds = random.sample(KINDS, k=len(KINDS)) + random.choices(KINDS, k=count - len(KINDS))
    instants = sorted(random.uniform(_WARM_UP_S, max(seconds, _WARM_UP_S)) for _ in kinds)
    return [
        Fault(at_s, kind, random.randrange(1 << 16), _down_s(kind, seconds, random))
        for at_s, kind in zip(instants, kinds, strict=True)
    ]


def _down_s(kind: str, seconds: int, random: Random) -> float:
    lot = random.random()
    if kind == "worker_paused" and seconds >= _LONG_PAUSE_SECONDS_MIN and lot < _LONG_PAUSES:
        return _LONG_PAUSE_S
    most = _PAUSED_S_MAX if kind.endswith("_paused") else _DOWN_S_MAX
    return random.uniform(0.1, min(most, seconds / 5))
