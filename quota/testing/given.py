"""What was answered to a key in `quota.testing`, and what it counts and holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quota.account import Payments
    from quota.decision import Decision
    from quota.testing.counters import Place
    from quota.values import UsageRecord

__all__ = ["COMMITTED", "EXPIRED", "OPEN", "RELEASED", "Given", "Hold", "Use"]

OPEN, COMMITTED, RELEASED, EXPIRED = "open", "committed", "released", "expired"


@dataclass(slots=True)
class Use:
    """Units that were counted, and who paid for them: what a refund or a new calendar looks for."""

    feature: str
    amount: int
    cost: int
    at_ms: int
    paid_at_ms: int
    places: list[Place]
    payments: Payments = field(default_factory=list)
    refunded: int = 0
    refunded_micro: int = 0


@dataclass(slots=True)
class Given:
    """What was answered to a key, and what came of it."""

    records: tuple[UsageRecord, ...]
    decisions: tuple[Decision, ...]
    uses: list[Use]
    hold: Hold | None = None


@dataclass(slots=True)
class Hold:
    """Units and credits set aside; *amount* and *cost* are what it ended with."""

    ttl_ms: int
    price: tuple[int, int]
    expires_at_ms: int
    ends: dict[str, int]
    status: str = "open"
    amount: int = 0
    cost: int = 0
