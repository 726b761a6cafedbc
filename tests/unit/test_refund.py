from __future__ import annotations

import json
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from quota.refund import Refund
from quota.values import AMOUNT_MAX, MICRO_MAX

micros = st.integers(0, MICRO_MAX)
refunds = st.builds(
    Refund,
    key=st.text(max_size=5),
    amount=st.integers(0, AMOUNT_MAX),
    credits_micro=micros,
    due_micro=micros,
    note=st.none() | st.text(max_size=5),
)


@given(refund=refunds)
def test_a_refund_comes_back_from_what_a_worker_answers(refund: Refund):
    answer = {name: getattr(refund, name) for name in refund.__slots__}

    assert Refund.load(json.loads(json.dumps(answer))) == refund


@given(refund=refunds)
def test_a_refund_is_true_when_it_took_units_back(refund: Refund):
    assert bool(refund) is (refund.amount > 0)


def test_a_refund_says_what_was_due_what_came_back_and_why_less():
    refund = Refund("k", 3, 0, 1_500_000, "the grant that paid has expired")

    assert (refund.due, refund.credits) == (Decimal("1.5"), Decimal(0))
    assert refund.as_dict() == {
        "key": "k",
        "amount": 3,
        "credits": "0",
        "due": "1.5",
        "note": "the grant that paid has expired",
    }


@given(refund=refunds)
def test_credits_of_a_refund_are_told_exactly(refund: Refund):
    told = refund.as_dict()

    assert Decimal(told["credits"]) * 1_000_000 == refund.credits_micro
    assert Decimal(told["due"]) * 1_000_000 == refund.due_micro
