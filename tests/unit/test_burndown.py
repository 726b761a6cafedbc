from __future__ import annotations

from dataclasses import replace
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quota.burndown import KINDS, Grant, burn_order

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


@given(purses, st.randoms())
def test_the_burn_order_does_not_depend_on_the_order_of_the_grants(purse, random):
    shuffled = list(purse)
    random.shuffle(shuffled)

    assert burn_order(shuffled) == burn_order(purse)
