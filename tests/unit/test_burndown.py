from __future__ import annotations

from dataclasses import replace
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quota.burndown import KINDS, Grant, burn, burn_order, spendable, valid_until_ms

NOW_MS = 1_000


def grant(number: int = 1, **fields: object) -> Grant:
    standard = Grant(id=UUID(int=number), amount=100, left=100, effective_at_ms=0, created_at_ms=0)
    return replace(standard, **fields)  # type: ignore[arg-type]


def ids(grants: list[Grant]) -> list[int]:
    return [grant.id.int for grant in grants]


moments = st.integers(0, 2_000)
grants = st.builds(
    Grant,
    id=st.uuids(),
    amount=st.integers(50, 100),
    left=st.integers(0, 50),
    priority=st.integers(-1, 2),
    kind=st.sampled_from(KINDS),
    effective_at_ms=moments,
    expires_at_ms=st.none() | moments,
    voided_at_ms=st.none() | moments,
    created_at_ms=st.integers(0, 2),
)
purses = st.lists(grants, max_size=8, unique_by=lambda grant: grant.id)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"priority": 0}, {"expires_at_ms": 5_000}),
        ({"expires_at_ms": 5_000}, {"expires_at_ms": 6_000, "kind": "promo"}),
        ({"expires_at_ms": 5_000}, {"kind": "promo"}),
        ({"kind": "promo"}, {"kind": "granted", "created_at_ms": -1}),
        ({"kind": "granted"}, {"kind": "purchased", "created_at_ms": -1}),
        ({"created_at_ms": 0}, {"created_at_ms": 1}),
        ({}, {}),
    ],
    ids=["priority", "expiry", "no expiry last", "promo", "granted", "created", "id"],
)
def test_grants_burn_by_priority_expiry_kind_age_and_id(
    first: dict[str, object], second: dict[str, object]
):
    earlier, later = grant(1, **first), grant(2, **second)

    assert ids(burn_order([later, earlier])) == [1, 2]
    assert ids(burn_order([earlier, later])) == [1, 2]
    if first != second:  # each criterion goes before the id
        earlier, later = replace(earlier, id=UUID(int=9)), replace(later, id=UUID(int=2))
        assert ids(burn_order([later, earlier])) == [9, 2]


@pytest.mark.parametrize(
    ("fields", "active"),
    [
        ({"effective_at_ms": NOW_MS}, True),
        ({"effective_at_ms": NOW_MS + 1}, False),
        ({"expires_at_ms": NOW_MS}, False),
        ({"expires_at_ms": NOW_MS + 1}, True),
        ({"voided_at_ms": NOW_MS}, False),
        ({"voided_at_ms": NOW_MS + 1}, True),
        ({"expires_at_ms": NOW_MS + 1, "voided_at_ms": NOW_MS}, False),
        ({"expires_at_ms": NOW_MS, "voided_at_ms": NOW_MS + 1}, False),
        ({"effective_at_ms": NOW_MS, "expires_at_ms": NOW_MS}, False),
    ],
)
def test_a_grant_is_active_from_its_effect_until_it_expires_or_is_voided(
    fields: dict[str, object], active: bool
):
    assert grant(**fields).active(NOW_MS) is active  # type: ignore[arg-type]


def test_a_cost_is_paid_from_one_grant_after_the_other():
    purse = [grant(1), grant(2, priority=0, left=30), grant(3, priority=9)]

    payments, overage = burn(purse, 140, at_ms=NOW_MS)

    assert payments == [(UUID(int=2), 30), (UUID(int=1), 100), (UUID(int=3), 10)]
    assert overage == 0


def test_what_no_grant_pays_is_overage():
    inactive = grant(2, effective_at_ms=NOW_MS + 1)

    assert burn([grant(1), inactive], 140, at_ms=NOW_MS) == ([(UUID(int=1), 100)], 40)
    assert burn([], 5, at_ms=NOW_MS) == ([], 5)


def test_a_cost_of_nothing_burns_nothing():
    assert burn([grant()], 0, at_ms=NOW_MS) == ([], 0)


@given(purses, st.integers(0, 500), moments)
def test_a_burn_conserves_credits_and_keeps_the_order(purse: list[Grant], cost: int, now_ms: int):
    left = {grant.id: grant.left for grant in purse if grant.active(now_ms)}
    before = list(purse)

    payments, overage = burn(purse, cost, at_ms=now_ms)

    paid = sum(micro for _, micro in payments)
    assert paid + overage == cost
    assert paid == min(cost, spendable(purse, at_ms=now_ms))
    assert all(0 < micro <= left[payer] for payer, micro in payments)
    assert all(micro == left[payer] for payer, micro in payments[:-1])
    payable = [g.id for g in burn_order(purse) if g.left > 0 and g.active(now_ms)]
    assert [payer for payer, _ in payments] == payable[: len(payments)]
    assert purse == before


@given(purses, st.integers(0, 200), st.integers(0, 200), moments)
def test_burning_two_halves_equals_burning_the_whole(
    purse: list[Grant], one: int, other: int, now_ms: int
):
    first, first_overage = burn(purse, one, at_ms=now_ms)
    paid = dict(first)
    rest = [replace(g, left=g.left - paid.get(g.id, 0)) for g in purse]
    second, second_overage = burn(rest, other, at_ms=now_ms)

    whole, overage = burn(purse, one + other, at_ms=now_ms)

    sums = dict(first)
    for payer, micro in second:
        sums[payer] = sums.get(payer, 0) + micro
    assert dict(whole) == sums
    assert overage == first_overage + second_overage


@given(purses, st.randoms())
def test_the_burn_order_does_not_depend_on_the_order_of_the_grants(purse, random):
    shuffled = list(purse)
    random.shuffle(shuffled)

    assert burn_order(shuffled) == burn_order(purse)


@given(purses, moments)
def test_the_spendable_sum_stays_until_the_instant_given_and_no_change_is_missed(
    purse: list[Grant], now_ms: int
):
    until_ms = valid_until_ms(purse, at_ms=now_ms)

    last_ms = 2_001 if until_ms is None else until_ms - 1
    assert until_ms is None or until_ms > now_ms
    before = spendable(purse, at_ms=now_ms)
    assert all(spendable(purse, at_ms=ms) == before for ms in range(now_ms, last_ms + 1))


@pytest.mark.parametrize(
    ("fields", "until_ms"),
    [
        ({}, None),
        ({"expires_at_ms": 5_000}, 5_000),
        ({"expires_at_ms": 5_000, "voided_at_ms": 4_000}, 4_000),
        ({"effective_at_ms": 3_000, "expires_at_ms": 5_000}, 3_000),
        ({"expires_at_ms": NOW_MS}, None),
        ({"effective_at_ms": 3_000, "expires_at_ms": 2_000}, None),
        ({"expires_at_ms": 5_000, "left": 0}, None),
    ],
)
def test_the_sum_changes_next_when_a_grant_with_credits_begins_or_ends(
    fields: dict[str, object], until_ms: int | None
):
    assert valid_until_ms([grant(**fields)], at_ms=NOW_MS) == until_ms  # type: ignore[arg-type]
