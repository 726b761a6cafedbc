"""Allotment's client: is this user still inside the limits and credits of their tier?

    async with Quota.from_url("redis://localhost") as quota:
        if await quota.consume("user-1", "image_generation"):
            ...

Needs redis-py and nothing else.
"""

from __future__ import annotations

from quota.balance import Balance
from quota.client import Quota
from quota.decision import Decision, LimitState
from quota.errors import (
    InvalidValueError,
    KeyConflictError,
    QuotaError,
    QuotaUnavailableError,
    UnknownGrantError,
    UnknownHoldError,
    UnknownKeyError,
    UnknownUserError,
)
from quota.loading import Loader
from quota.receipt import Receipt

__all__ = [
    "Balance",
    "Decision",
    "InvalidValueError",
    "KeyConflictError",
    "LimitState",
    "Loader",
    "Quota",
    "QuotaError",
    "QuotaUnavailableError",
    "Receipt",
    "UnknownGrantError",
    "UnknownHoldError",
    "UnknownKeyError",
    "UnknownUserError",
]
