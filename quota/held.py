"""An open hold as Redis keeps it beside the user's counters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from quota.rules import per_code, per_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["FIELD", "Held"]

FIELD = "o:"  # before the key of the hold: a field of the quota hash


@dataclass(frozen=True, slots=True)
class Held:
    """Units and micro-credits set aside; *ends* are those of the periods that counted the units.

    *price* is that of a unit when it was reserved, as a reduced fraction: a commit pays by it.
    """

    key: str
    feature: str
    amount: int
    cost: int
    price: tuple[int, int]
    expires_at_ms: int
    ends: Mapping[str, int]

    def dump(self, segments: Iterable[tuple[int, bool]]) -> str:
        """The field's value; *segments*: what each payer paid, in order, and whether it would come back.

        `expires|feature|amount|cost|numerator/denominator|per=end,…|paid+,paid-,…`
        """
        ends = "".join(f"{per_code(per)}={end_ms}," for per, end_ms in self.ends.items())
        paid = "".join(f"{micro}{'+' if returns else '-'}," for micro, returns in segments)
        numerator, denominator = self.price
        return (
            f"{self.expires_at_ms}|{self.feature}|{self.amount}|{self.cost}|"
            f"{numerator}/{denominator}|{ends}|{paid}"
        )

    @classmethod
    def load(cls, key: str, text: bytes) -> Held:
        """The inverse of `dump`, without the segments."""
        expires, feature, amount, cost, price, ends, _ = text.decode().split("|")
        numerator, _, denominator = price.partition("/")
        counted = (entry.split("=") for entry in ends.split(",")[:-1])
        return cls(
            key,
            feature,
            int(amount),
            int(cost),
            (int(numerator), int(denominator)),
            int(expires),
            {per_name(code): int(end_ms) for code, end_ms in counted},
        )
