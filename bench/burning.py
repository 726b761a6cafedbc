"""A burn over a user with very many grants: what the worker does for each such user of a run."""

from __future__ import annotations

import random
import time
from statistics import median
from typing import TYPE_CHECKING
from uuid import UUID

from quota.account import Account
from quota.burndown import KINDS, Grant
from quota.values import MICRO

if TYPE_CHECKING:
    from bench.report import Numbers
    from bench.scale import Scale

__all__ = ["burn_over_many_grants"]

_GRANTS = 1_000  # of the issue
_NOW_MS = 1_700_000_000_000
_DAY_MS = 86_400_000


def burn_over_many_grants(scale: Scale) -> Numbers:
    """Milliseconds to put a thousand grants in order, take what is due by time, and have half of them pay."""
    grants = _grants(random.Random(2002))
    cost = sum(grant.left for grant in grants) // 2
    times = []
    for _ in range(scale.burns):
        started = time.perf_counter()
        account = Account(grants)
        account.advance(_NOW_MS)
        payments, _ = account.charge(cost, at_ms=_NOW_MS)
        times.append(time.perf_counter() - started)
        assert len(payments) > _GRANTS // 4, "one grant is not to pay it all"
    return {"burn_of_1000_grants_ms": 1000 * median(times)}


def _grants(draw: random.Random) -> list[Grant]:
    return [
        Grant(
            id=UUID(int=draw.getrandbits(128)),
            amount=100 * MICRO,
            left=draw.randint(1, 100) * MICRO,
            priority=draw.randint(1, 3),
            kind=draw.choice(KINDS),
            effective_at_ms=_NOW_MS - draw.randint(1, 100) * _DAY_MS,
            expires_at_ms=draw.choice((None, _NOW_MS + draw.randint(1, 300) * _DAY_MS)),
            created_at_ms=_NOW_MS - 200 * _DAY_MS + number,
            every=draw.choice((None, None, None, "month")),
        )
        for number in range(_GRANTS)
    ]
