"""What `refund` answers: how much of a record was taken back, and what of its cost came back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from quota.values import credits_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from decimal import Decimal

__all__ = ["Refund"]


@dataclass(frozen=True, slots=True)
class Refund:
    """Units taken back; *due* of their cost, and *credits* that did come back. *note* says why they differ."""

    key: str
    amount: int
    credits_micro: int
    due_micro: int
    note: str | None = None

    def __bool__(self) -> bool:
        return self.amount > 0

    @property
    def credits(self) -> Decimal:
        """Credits that came back to grants, or reduced overage."""
        return credits_of(self.credits_micro)

    @property
    def due(self) -> Decimal:
        """What was paid for the units that were taken back."""
        return credits_of(self.due_micro)

    @classmethod
    def load(cls, answer: Mapping[str, Any]) -> Self:
        """The refund that a worker answered."""
        return cls(
            answer["key"],
            answer["amount"],
            answer["credits_micro"],
            answer["due_micro"],
            answer["note"],
        )

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {
            "key": self.key,
            "amount": self.amount,
            "credits": format(self.credits, "f"),
            "due": format(self.due, "f"),
            "note": self.note,
        }
