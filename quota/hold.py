"""Units and credits set aside until it is known how much was used: `reserve`, then commit or release."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from quota.errors import InvalidValueError, QuotaError, UnknownHoldError
from quota.values import credits_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Generator
    from datetime import datetime
    from decimal import Decimal
    from types import TracebackType

    from quota.decision import Decision

__all__ = ["TTL_SECONDS_MAX", "Hold", "Reservation", "Settlement", "parse_ttl"]

TTL_SECONDS_MAX = 86_400  # a hold of more than a day is a forgotten one
TTL_SECONDS_DEFAULT = 60
_log = logging.getLogger("quota")


def parse_ttl(value: object) -> int:
    """Whole seconds that a hold may last."""
    if type(value) is int and 1 <= value <= TTL_SECONDS_MAX:
        return value
    raise InvalidValueError("ttl", value, f"whole seconds from 1 to {TTL_SECONDS_MAX}")


@dataclass(frozen=True, slots=True)
class Settlement:
    """How a hold ended: `committed`, `released` or `expired`, by whoever ended it first.

    `open` when the surplus of a commit was denied: then *decision* says why, and the hold stays.
    *amount* and cost are what it ended with.
    """

    hold: str
    status: str
    amount: int
    cost_micro: int
    replayed: bool = False
    decision: Decision | None = None
    wanted: str = "committed"

    def __bool__(self) -> bool:
        return self.status == self.wanted

    @property
    def cost(self) -> Decimal:
        """Credits that stay paid."""
        return credits_of(self.cost_micro)

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {
            "hold": self.hold,
            "status": self.status,
            "amount": self.amount,
            "cost": format(self.cost, "f"),
            "replayed": self.replayed,
            "decision": None if self.decision is None else self.decision.as_dict(),
        }


class Settler(Protocol):
    """What a hold is ended by."""

    async def commit(
        self,
        user_id: object,
        hold_id: object,
        amount: object = None,
        *,
        now: datetime | None = None,
    ) -> Settlement:
        """See `Quota.commit`."""

    async def release(
        self, user_id: object, hold_id: object, *, now: datetime | None = None
    ) -> Settlement:
        """See `Quota.release`."""


class Hold:
    """What `reserve` answered; true when it was allowed, and then to be ended."""

    def __init__(self, quota: Settler, user_id: str, decision: Decision) -> None:
        self._quota = quota
        self.user_id = user_id
        self.decision = decision
        self.settlement: Settlement | None = None

    def __bool__(self) -> bool:
        return self.decision.allowed

    @property
    def id(self) -> str:
        """The name by which any process can end the hold: the key of the record."""
        return self.decision.key

    async def commit(self, amount: object = None, *, now: datetime | None = None) -> Settlement:
        """Use *amount* of what is held, default all; see `Quota.commit`."""
        self._refuse_denied()
        settlement = await self._quota.commit(self.user_id, self.id, amount, now=now)
        if settlement.status != "open":
            self.settlement = settlement
        return settlement

    async def release(self, *, now: datetime | None = None) -> Settlement:
        """Give all of it back; see `Quota.release`."""
        self._refuse_denied()
        self.settlement = await self._quota.release(self.user_id, self.id, now=now)
        return self.settlement

    def _refuse_denied(self) -> None:
        if not self.decision.allowed:
            raise UnknownHoldError(self.id)


class Reservation:
    """A reserve that was asked for: awaited it is a Hold, as a block it releases what is not committed."""

    def __init__(self, asked: Awaitable[Hold], *, now: datetime | None) -> None:
        self._asked = asked
        self._now = now
        self._hold: Hold | None = None

    def __await__(self) -> Generator[Any, None, Hold]:
        return self._asked.__await__()

    async def __aenter__(self) -> Hold:
        self._hold = await self._asked
        return self._hold

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        hold = self._hold
        if hold is None or not hold or hold.settlement is not None:
            return
        try:
            await hold.release(now=self._now)
        except QuotaError as failure:
            # It expires by itself, and what the block raised is to be seen.
            _log.warning("hold %s was not released: %s", hold.id, failure)
