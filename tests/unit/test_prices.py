from __future__ import annotations

from decimal import Decimal, localcontext
from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from quota.errors import InvalidValueError
from quota.prices import Price, cost_of, cost_of_units, parse_price, unit_of
from quota.values import AMOUNT_MAX, MICRO, MICRO_MAX

IMAGE = Price(Decimal("1.0"), {"video": Decimal(4)}, {"high": Decimal("2.5")})


def cost(
    price: Price | None, amount: int = 1, format: str | None = None, quality: str | None = None
) -> int:
    return cost_of(price, amount=amount, format=format, quality=quality)


@pytest.mark.parametrize(
    ("amount", "format", "quality", "micro"),
    [
        (1, None, None, 1_000_000),
        (1, None, "high", 2_500_000),
        (2, "video", "high", 20_000_000),
        (1, "unlisted", None, 1_000_000),
        (3, "video", "unlisted", 12_000_000),
    ],
)
def test_a_cost_is_price_times_format_times_quality_times_amount(
    amount: int, format: str | None, quality: str | None, micro: int
):
    assert cost(IMAGE, amount, format, quality) == micro


def test_no_price_costs_nothing():
    assert cost(None, AMOUNT_MAX, "video", "high") == 0
    assert cost(Price(Decimal(0)), AMOUNT_MAX) == 0


@pytest.mark.parametrize(
    ("base", "amount", "micro"),
    [
        ("0.0000005", 1, 0),  # halves go to the even neighbour
        ("0.0000005", 3, 2),
        ("0.0000005", 5, 2),
        ("0.000000500001", 1, 1),
        ("0.000000000001", 1, 0),
        ("0.000000000001", 1_000_000, 1),  # rounded once, not for each unit
        ("0.000000125", 743, 93),
    ],
)
def test_a_cost_is_rounded_half_even_once_at_the_end(base: str, amount: int, micro: int):
    assert cost(Price(Decimal(base)), amount) == micro


def test_a_name_that_is_not_listed_leaves_no_trace():
    price = Price(Decimal(1), {"video": Decimal(4)})
    for number in range(1000):
        cost(price, format=f"format-{number}", quality=f"quality-{number}")

    assert len(price._units) == 1


def test_a_price_that_was_asked_equals_one_that_was_not():
    asked, fresh = Price(Decimal(1), {"a": Decimal(2)}), Price(Decimal("1.0"), {"a": Decimal(2)})
    cost(asked, format="a")

    assert asked == fresh


decimals = st.integers(0, 10**27 - 1).map(lambda number: Decimal(f"{number:013d}E-12"))
small = st.integers(0, 10**7).map(lambda number: Decimal(f"{number}E-6"))


@given(
    decimals | small, decimals | small, decimals | small, st.integers(1, AMOUNT_MAX), st.booleans()
)
def test_a_cost_is_exact_whatever_the_decimal_context(
    base: Decimal, by_format: Decimal, by_quality: Decimal, amount: int, listed: bool
):
    price = Price(base, {"f": by_format}, {"q": by_quality} if listed else {})
    exact = Fraction(base) * Fraction(by_format) * amount * MICRO
    if listed:
        exact *= Fraction(by_quality)

    with localcontext(prec=2):
        if round(exact) > MICRO_MAX:  # Python rounds a Fraction half-even
            with pytest.raises(InvalidValueError, match=r"^amount: "):
                cost(price, amount, "f", "q")
        else:
            assert cost(price, amount, "f", "q") == round(exact)
            assert cost(price, amount, "f", "q") == round(exact)  # from the cache


@given(decimals | small, decimals | small, st.integers(1, AMOUNT_MAX))
def test_the_price_of_a_unit_is_exact_reduced_and_enough_for_any_cost(
    base: Decimal, by_quality: Decimal, amount: int
):
    price = Price(base, {}, {"q": by_quality})
    exact = Fraction(base) * Fraction(by_quality) * MICRO

    with localcontext(prec=2):
        numerator, denominator = unit_of(price, format="unlisted", quality="q")

    assert (numerator, denominator) == (exact.numerator, exact.denominator)
    if round(exact * amount) <= MICRO_MAX:
        assert cost_of_units(numerator, denominator, amount=amount) == cost(
            price, amount, "unlisted", "q"
        )


def test_a_unit_without_a_price_costs_nothing():
    assert unit_of(None, format="video", quality=None) == (0, 1)
    assert unit_of(Price(Decimal(0)), format=None, quality=None) == (0, 1)
    assert cost_of_units(0, 1, amount=AMOUNT_MAX) == 0


@pytest.mark.parametrize(
    ("amount", "micro"), [(0, 0), (1, 0), (2, 1), (3, 2), (4, 2), (5, 2), (6, 3), (7, 4)]
)
def test_a_cost_of_units_is_rounded_half_even(amount: int, micro: int):
    assert cost_of_units(1, 2, amount=amount) == micro


def test_units_that_cost_more_than_anyone_has_are_refused():
    assert cost_of_units(MICRO_MAX, 1, amount=1) == MICRO_MAX

    with pytest.raises(InvalidValueError, match=r"^amount: .*9007199254\.740991 credits"):
        cost_of_units(MICRO_MAX, 1, amount=2)


@given(small, st.integers(1, 10**6), st.integers(1, 10**6))
def test_with_a_price_of_whole_micro_credits_costs_add_up(base: Decimal, one: int, other: int):
    price = Price(base)
    assume(base * (one + other) < 9_000_000_000)

    assert cost(price, one + other) == cost(price, one) + cost(price, other)


def test_a_cost_up_to_the_bound_is_asked_and_one_past_it_is_refused():
    assert cost(Price(Decimal("0.000001")), AMOUNT_MAX) == MICRO_MAX
    assert cost(Price(Decimal("9007199254.7409914"))) == MICRO_MAX

    with pytest.raises(InvalidValueError, match=r"^amount: .*9007199254\.740991 credits"):
        cost(Price(Decimal("0.000002")), AMOUNT_MAX)
    with pytest.raises(InvalidValueError, match=r"^amount: "):
        cost(Price(Decimal("9007199254.7409915")))


@pytest.mark.parametrize(
    ("value", "price"),
    [
        ("0", Decimal(0)),
        ("1.0", Decimal(1)),
        ("0.000000000001", Decimal("1E-12")),
        ("999999999999999.999999999999", Decimal("999999999999999.999999999999")),
        (4, Decimal(4)),
        (0, Decimal(0)),
        (Decimal("2.5"), Decimal("2.5")),
        (Decimal("-0"), Decimal(0)),
        (Decimal("1E+3"), Decimal(1000)),
    ],
)
def test_a_price_is_an_exact_decimal(value: object, price: Decimal):
    parsed = parse_price(value, field="price")

    assert parsed == price
    assert not parsed.is_signed()


@pytest.mark.parametrize(
    "value",
    [
        1.0,
        0.1,
        float("nan"),
        float("inf"),
        True,
        None,
        b"1",
        [1],
        {},
        "",
        "-1",
        "-0",
        "+1",
        " 1",
        "1\n",
        ".5",
        "5.",
        "01",
        "1,5",
        "1_000",
        "1e3",
        "1e400",
        "NaN",
        "Infinity",
        "\uff11",
        "1\0",
        "\ud800",
        "0.0000000000001",
        "1000000000000000",
        "1" * 1_000_000,
        -1,
        10**15,
        10**5000,
        Decimal("NaN"),
        Decimal("sNaN"),
        Decimal("Infinity"),
        Decimal(-1),
        Decimal("1E+15"),
        Decimal("1E+999999"),
        Decimal("1E-13"),
        Decimal("1E-999999"),
        Decimal("1.0000000000001"),
    ],
    ids=lambda value: str(value)[:20] if isinstance(value, str) else type(value).__name__,
)
def test_a_bad_price_is_refused_by_name(value: object):
    with pytest.raises(InvalidValueError, match=r"^image\.price: "):
        parse_price(value, field="image.price")
