"""What a usage record costs: base times format times quality times amount, exact, rounded once.

Integers carry the arithmetic. Three factors of 27 digits pass any decimal context, and
a context belongs to the caller, who may have changed it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import gcd
from typing import TYPE_CHECKING

from quota.errors import InvalidValueError
from quota.values import MICRO, MICRO_MAX, credits_of, exact_decimal

if TYPE_CHECKING:
    from collections.abc import Mapping
    from decimal import Decimal

__all__ = ["Price", "cost_of", "cost_of_units", "parse_price", "unit_of"]

_WHOLE_MAX = 15  # digits before the point
_PLACES_MAX = 12  # a provider's price per token needs 8 to 10


@dataclass(frozen=True, slots=True)
class Price:
    """Credits that one unit of a feature costs, and what formats and qualities multiply it by."""

    base: Decimal
    formats: Mapping[str, Decimal] = field(default_factory=dict)
    qualities: Mapping[str, Decimal] = field(default_factory=dict)
    # Micro-credits of a unit as a reduced fraction, by listed format and quality: bounded
    # by what the price lists, because a name that is not listed is looked up as None.
    _units: dict[tuple[str | None, str | None], tuple[int, int]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )


def parse_price(value: object, *, field: str) -> Decimal:
    """A price or multiplier: a decimal string or an integer, zero or more, up to 12 places."""
    price = exact_decimal(value, whole_max=_WHOLE_MAX, places_max=_PLACES_MAX)
    if price is None:
        raise InvalidValueError(
            field, value, "a decimal string of up to 15 digits and 12 places, zero or more"
        )
    return price


def cost_of(price: Price | None, *, amount: int, format: str | None, quality: str | None) -> int:
    """Micro-credits for *amount* units, rounded half-even once at the end.

    No price costs nothing; a format or quality that is not listed multiplies by 1.
    """
    assert amount > 0
    numerator, denominator = unit_of(price, format=format, quality=quality)
    return cost_of_units(numerator, denominator, amount=amount)


def unit_of(price: Price | None, *, format: str | None, quality: str | None) -> tuple[int, int]:
    """Micro-credits of one unit, exact, as a reduced fraction."""
    if price is None:
        return 0, 1
    listed = (
        format if format in price.formats else None,
        quality if quality in price.qualities else None,
    )
    unit = price._units.get(listed)
    if unit is None:
        unit = price._units[listed] = _unit(price, format=listed[0], quality=listed[1])
    return unit


def cost_of_units(numerator: int, denominator: int, *, amount: int) -> int:
    """Micro-credits for *amount* units of that price, rounded half-even.

    Raises:
        InvalidValueError: they are more than anyone can have.
    """
    cost = numerator * amount
    if denominator != 1:
        cost = _half_even(cost, denominator)
    if cost > MICRO_MAX:
        raise InvalidValueError(
            "amount", amount, f"an amount that costs at most {credits_of(MICRO_MAX)} credits"
        )
    return cost


def _unit(price: Price, *, format: str | None, quality: str | None) -> tuple[int, int]:
    numerator, denominator = price.base.as_integer_ratio()
    numerator *= MICRO
    for name, multipliers in ((format, price.formats), (quality, price.qualities)):
        if name is not None:
            over, under = multipliers[name].as_integer_ratio()
            numerator, denominator = numerator * over, denominator * under
    divisor = gcd(numerator, denominator)
    return numerator // divisor, denominator // divisor


def _half_even(numerator: int, denominator: int) -> int:
    quotient, rest = divmod(numerator, denominator)
    twice = 2 * rest
    up = twice > denominator or (twice == denominator and quotient % 2 == 1)
    return quotient + up
