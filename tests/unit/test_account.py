from __future__ import annotations

from collections import Counter
from dataclasses import replace
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from quota.account import Account
from quota.burndown import KINDS, Grant, burn, spendable

END_MS = 1_000

moments = st.integers(0, END_MS)
grants = st.builds(
    Grant,
    id=st.uuids(),
    amount=st.just(60),
    left=st.integers(0, 60),
    priority=st.integers(0, 1),
    kind=st.sampled_from(KINDS),
    effective_at_ms=moments,
    expires_at_ms=st.none() | moments,
    voided_at_ms=st.none() | moments,
    created_at_ms=st.integers(0, 2),
)
purses = st.lists(grants, max_size=6, unique_by=lambda grant: grant.id)
# When, and what it costs; nothing is charged where the cost is 0.
charges = st.lists(st.tuples(moments, st.integers(0, 80)), max_size=8).map(sorted)


def grant(number: int, left: int, **fields: int | None) -> Grant:
    plain = Grant(id=UUID(int=number), amount=100, left=left, effective_at_ms=0, created_at_ms=0)
    return replace(plain, **fields)  # type: ignore[arg-type]


def left_in(account: Account) -> dict[UUID, int]:
    return {grant.id: grant.left for grant in account.grants()}


@given(purse=purses, costs=charges, overage=st.integers(0, 50))
def test_what_is_charged_is_paid_or_becomes_overage(
    purse: list[Grant], costs: list[tuple[int, int]], overage: int
):
    account = Account(purse, overage)

    for at_ms, cost in costs:
        before, overage_before = left_in(account), account.overage
        repaid = account.repay(at_ms=at_ms)
        paid, rest = account.charge(cost, at_ms=at_ms)

        spent = Counter(before)
        spent.subtract(left_in(account))
        payers: Counter[UUID] = Counter()
        for grant_id, micro in [*repaid, *paid]:
            assert micro > 0
            payers[grant_id] += micro
        assert +spent == payers
        assert sum(micro for _, micro in paid) + rest == cost
        assert account.overage == overage_before - sum(micro for _, micro in repaid) + rest
        assert min([account.overage, *left_in(account).values()]) >= 0


@given(purse=purses, costs=charges)
def test_there_is_no_overage_while_an_active_grant_has_credits(
    purse: list[Grant], costs: list[tuple[int, int]]
):
    account = Account(purse)

    for at_ms, cost in costs:
        account.repay(at_ms=at_ms)
        account.charge(cost, at_ms=at_ms)

        assert not account.overage or spendable(account.grants(), at_ms=at_ms) == 0
        assert (
            account.net(at_ms=at_ms) == spendable(account.grants(), at_ms=at_ms) - account.overage
        )


@given(purse=purses, cost=st.integers(0, 300), at_ms=moments)
def test_a_charge_pays_as_burn_says(purse: list[Grant], cost: int, at_ms: int):
    assert Account(purse).charge(cost, at_ms=at_ms) == burn(purse, cost, at_ms=at_ms)


@given(
    purse=purses,
    overage=st.integers(0, 200),
    started_ms=moments,
    stops=st.lists(moments, max_size=8),
)
def test_walking_activations_step_by_step_equals_one_walk(
    purse: list[Grant], overage: int, started_ms: int, stops: list[int]
):
    stops = sorted(stop for stop in stops if stop >= started_ms)
    by_steps, at_once = (Account(purse, overage, at_ms=started_ms) for _ in range(2))
    by_steps.repay(at_ms=started_ms)  # what is active already pays first in both
    at_once.repay(at_ms=started_ms)

    paid_by_steps = [payment for stop in [*stops, END_MS] for payment in by_steps.repay(at_ms=stop)]
    paid_at_once = at_once.repay(at_ms=END_MS)

    assert paid_by_steps == paid_at_once
    assert by_steps.overage == at_once.overage
    assert left_in(by_steps) == left_in(at_once)


@given(purse=purses, overage=st.integers(0, 200), at_ms=moments)
def test_repaying_twice_at_one_instant_pays_once(purse: list[Grant], overage: int, at_ms: int):
    account = Account(purse, overage)
    account.repay(at_ms=at_ms)
    left, rest = left_in(account), account.overage

    assert account.repay(at_ms=at_ms) == []
    assert (left_in(account), account.overage) == (left, rest)


def test_the_grant_that_becomes_active_first_repays_first_whatever_its_priority():
    early = grant(1, left=30, priority=9, effective_at_ms=100)
    late = grant(2, left=30, priority=0, effective_at_ms=200)

    assert Account([late, early], 40, at_ms=50).repay(at_ms=300) == [(early.id, 30), (late.id, 10)]


def test_grants_that_become_active_together_repay_in_burn_order():
    first = grant(2, left=30, priority=0, effective_at_ms=100)
    second = grant(1, left=30, priority=1, effective_at_ms=100)

    assert Account([second, first], 40).repay(at_ms=100) == [(first.id, 30), (second.id, 10)]


def test_a_grant_that_came_and_went_while_nobody_looked_has_repaid():
    passing = grant(1, left=30, effective_at_ms=100, expires_at_ms=200)
    account = Account([passing], 40, at_ms=50)

    assert account.repay(at_ms=300) == [(passing.id, 30)]
    assert account.overage == 10


def test_a_grant_that_was_over_before_the_overage_does_not_repay_it():
    over = grant(1, left=30, expires_at_ms=100)
    account = Account([over], 40, at_ms=150)

    assert account.repay(at_ms=300) == []
    assert (account.overage, account.left_of(over.id)) == (40, 30)


def test_an_overage_made_after_a_grant_was_over_is_not_repaid_by_it():
    over = grant(1, left=30, expires_at_ms=100)
    account = Account([over])
    account.repay(at_ms=150)
    account.charge(40, at_ms=150)

    assert account.repay(at_ms=300) == []
    assert account.net(at_ms=300) == -40


@given(purse=purses, at_ms=moments)
def test_the_net_stays_until_the_instant_that_is_told(purse: list[Grant], at_ms: int):
    account = Account(purse)
    until_ms = account.valid_until_ms(at_ms=at_ms)
    last_ms = END_MS if until_ms is None else until_ms - 1

    nets = {account.net(at_ms=moment) for moment in range(at_ms, last_ms + 1)}

    assert len(nets) <= 1
    assert until_ms is None or until_ms > at_ms


@given(purse=purses)
def test_the_grants_handed_in_stay_as_they_are(purse: list[Grant]):
    copies = [replace(grant) for grant in purse]

    Account(purse).charge(100, at_ms=500)

    assert purse == copies
