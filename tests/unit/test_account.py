from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quota.account import Account
from quota.burndown import KINDS, Grant, burn_order

if TYPE_CHECKING:
    from quota.account import Payments

END_MS = 1_000
NOW_MS = 500

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


def grant(number: int = 1, left: int = 100, **fields: int | None) -> Grant:
    plain = Grant(id=UUID(int=number), amount=100, left=left, effective_at_ms=0, created_at_ms=0)
    return replace(plain, **fields)  # type: ignore[arg-type]


def left_in(account: Account) -> dict[UUID, int]:
    return {grant.id: grant.left for grant in account.grants()}


def spendable(account: Account, at_ms: int) -> int:
    return sum(grant.left for grant in account.grants() if grant.active(at_ms))


def repaid(account: Account, at_ms: int) -> Payments:
    """What grants pay of overage on the way to *at_ms*; of plain grants nothing else moves by itself."""
    moves = account.advance(at_ms)
    assert {move.kind for move in moves} <= {"repaid"}
    return [(move.grant_id, move.amount) for move in moves]


# Who pays


def test_a_cost_is_paid_from_one_grant_after_the_other():
    account = Account([grant(1), grant(2, 30, priority=0), grant(3, priority=9)])

    payments, overage = account.charge(140, at_ms=NOW_MS)

    assert payments == [(UUID(int=2), 30), (UUID(int=1), 100), (UUID(int=3), 10)]
    assert overage == 0
    assert left_in(account) == {UUID(int=2): 0, UUID(int=1): 0, UUID(int=3): 90}


def test_what_no_grant_pays_is_overage():
    inactive = grant(2, effective_at_ms=NOW_MS + 1)
    account = Account([grant(1), inactive])

    assert account.charge(140, at_ms=NOW_MS) == ([(UUID(int=1), 100)], 40)
    assert account.net(at_ms=NOW_MS) == -40
    assert Account([]).charge(5, at_ms=NOW_MS) == ([], 5)


def test_a_cost_of_nothing_burns_nothing():
    assert Account([grant()]).charge(0, at_ms=NOW_MS) == ([], 0)


@given(purse=purses, cost=st.integers(0, 500), at_ms=moments)
def test_a_charge_conserves_credits_and_keeps_the_order(purse: list[Grant], cost: int, at_ms: int):
    payable = [grant for grant in burn_order(purse) if grant.left > 0 and grant.active(at_ms)]
    left = {grant.id: grant.left for grant in payable}

    payments, overage = Account(purse).charge(cost, at_ms=at_ms)

    paid = sum(micro for _, micro in payments)
    assert paid == min(cost, sum(left.values()))
    assert paid + overage == cost
    assert [payer for payer, _ in payments] == list(left)[: len(payments)]
    assert all(payer is not None and 0 < micro <= left[payer] for payer, micro in payments)
    assert all(payer is not None and micro == left[payer] for payer, micro in payments[:-1])


@given(purse=purses, one=st.integers(0, 200), other=st.integers(0, 200), at_ms=moments)
def test_charging_two_halves_equals_charging_the_whole(
    purse: list[Grant], one: int, other: int, at_ms: int
):
    by_halves, at_once = Account(purse), Account(purse)
    sums: Counter[UUID | None] = Counter()

    for part in (one, other):
        sums.update(dict(by_halves.charge(part, at_ms=at_ms)[0]))
    payments, _ = at_once.charge(one + other, at_ms=at_ms)

    assert +sums == Counter(dict(payments))
    assert by_halves.overage == at_once.overage
    assert by_halves.grants() == at_once.grants()


@given(purse=purses, costs=charges, overage=st.integers(0, 50))
def test_what_is_charged_is_paid_or_becomes_overage(
    purse: list[Grant], costs: list[tuple[int, int]], overage: int
):
    account = Account(purse, overage)

    for at_ms, cost in costs:
        before, overage_before = left_in(account), account.overage
        repayments = repaid(account, at_ms)
        paid, rest = account.charge(cost, at_ms=at_ms)

        spent = Counter(before)
        spent.subtract(left_in(account))
        payers: Counter[UUID] = Counter()
        for grant_id, micro in [*repayments, *paid]:
            assert grant_id is not None
            assert micro > 0
            payers[grant_id] += micro
        assert +spent == payers
        assert sum(micro for _, micro in paid) + rest == cost
        assert account.overage == overage_before - sum(micro for _, micro in repayments) + rest
        assert min([account.overage, *left_in(account).values()]) >= 0


@given(purse=purses, costs=charges)
def test_there_is_no_overage_while_an_active_grant_has_credits(
    purse: list[Grant], costs: list[tuple[int, int]]
):
    account = Account(purse)

    for at_ms, cost in costs:
        account.charge(cost, at_ms=at_ms)

        assert not account.overage or spendable(account, at_ms) == 0
        assert account.net(at_ms=at_ms) == spendable(account, at_ms) - account.overage


@given(purse=purses, costs=charges)
def test_a_charge_walks_to_its_instant_by_itself(purse: list[Grant], costs: list[tuple[int, int]]):
    walked, charged = Account(purse), Account(purse)

    for at_ms, cost in costs:
        walked.advance(at_ms)

        assert walked.charge(cost, at_ms=at_ms) == charged.charge(cost, at_ms=at_ms)
    assert walked.grants() == charged.grants()


def test_a_thousand_grants_pay_in_order():
    purse = [grant(number, 7, created_at_ms=number) for number in range(1_000)]
    account = Account(reversed(purse))

    payments, overage = account.charge(7 * 1_000 - 3, at_ms=NOW_MS)

    assert payments == [*((UUID(int=number), 7) for number in range(999)), (UUID(int=999), 4)]
    assert (overage, account.net(at_ms=NOW_MS)) == (0, 3)


@given(purse=purses)
def test_the_grants_handed_in_stay_as_they_are(purse: list[Grant]):
    copies = [replace(grant) for grant in purse]

    Account(purse).charge(100, at_ms=NOW_MS)

    assert purse == copies


# Who repays


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
    by_steps.advance(started_ms)  # what is active already pays first in both
    at_once.advance(started_ms)

    moves_by_steps = [move for stop in [*stops, END_MS] for move in by_steps.advance(stop)]
    moves_at_once = at_once.advance(END_MS)

    assert moves_by_steps == moves_at_once
    assert by_steps.overage == at_once.overage
    assert left_in(by_steps) == left_in(at_once)


def test_a_grant_that_begins_at_the_instant_of_the_overage_repays_it_though_it_is_over_by_now():
    account = Account([grant(left=4, effective_at_ms=10, expires_at_ms=20)], 10, at_ms=10)

    assert repaid(account, 30) == [(UUID(int=1), 4)]
    assert account.overage == 6


@given(purse=purses, overage=st.integers(0, 200), at_ms=moments)
def test_walking_twice_to_one_instant_pays_once(purse: list[Grant], overage: int, at_ms: int):
    account = Account(purse, overage)
    account.advance(at_ms)
    left, rest = left_in(account), account.overage

    assert account.advance(at_ms) == []
    assert (left_in(account), account.overage) == (left, rest)


@given(purse=purses, overage=st.integers(0, 200), at_ms=moments, earlier_ms=moments)
def test_time_does_not_go_back(purse: list[Grant], overage: int, at_ms: int, earlier_ms: int):
    account = Account(purse, overage)
    account.advance(at_ms)
    left = left_in(account)

    assert account.advance(min(at_ms, earlier_ms)) == []
    assert (account.at_ms, left_in(account)) == (at_ms, left)


def test_the_grant_that_becomes_active_first_repays_first_whatever_its_priority():
    early = grant(1, 30, priority=9, effective_at_ms=100)
    late = grant(2, 30, priority=0, effective_at_ms=200)

    assert repaid(Account([late, early], 40, at_ms=50), 300) == [(early.id, 30), (late.id, 10)]


def test_grants_that_become_active_together_repay_in_burn_order():
    first = grant(2, 30, priority=0, effective_at_ms=100)
    second = grant(1, 30, priority=1, effective_at_ms=100)

    assert repaid(Account([second, first], 40), 100) == [(first.id, 30), (second.id, 10)]


def test_a_repayment_tells_the_instant_at_which_the_grant_began():
    account = Account([grant(1, 30, effective_at_ms=100)], 40, at_ms=50)

    assert [move.at_ms for move in account.advance(300)] == [100]


def test_a_grant_that_came_and_went_while_nobody_looked_has_repaid():
    passing = grant(1, 30, effective_at_ms=100, expires_at_ms=200)
    account = Account([passing], 40, at_ms=50)

    assert repaid(account, 300) == [(passing.id, 30)]
    assert account.overage == 10


def test_a_grant_that_was_over_before_the_overage_does_not_repay_it():
    over = grant(1, 30, expires_at_ms=100)
    account = Account([over], 40, at_ms=150)

    assert repaid(account, 300) == []
    assert (account.overage, account.left_of(over.id)) == (40, 30)


def test_an_overage_made_after_a_grant_was_over_is_not_repaid_by_it():
    over = grant(1, 30, expires_at_ms=100)
    account = Account([over])
    account.advance(150)
    account.charge(40, at_ms=150)

    assert repaid(account, 300) == []
    assert account.net(at_ms=300) == -40


# Until when it is true


@given(purse=purses, at_ms=moments)
def test_the_net_stays_until_the_instant_that_is_told(purse: list[Grant], at_ms: int):
    account = Account(purse)
    until_ms = account.valid_until_ms(at_ms=at_ms)
    last_ms = END_MS if until_ms is None else until_ms - 1

    nets = {account.net(at_ms=moment) for moment in range(at_ms, last_ms + 1)}

    assert len(nets) <= 1
    assert until_ms is None or until_ms > at_ms


@given(one=grants, at_ms=moments)
def test_the_instant_that_is_told_is_the_one_at_which_the_net_changes(one: Grant, at_ms: int):
    account = Account([one])

    until_ms = account.valid_until_ms(at_ms=at_ms)

    if until_ms is not None:
        assert account.net(at_ms=until_ms) != account.net(at_ms=until_ms - 1)


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
def test_the_net_changes_next_when_a_grant_with_credits_begins_or_ends(
    fields: dict[str, int], until_ms: int | None
):
    assert Account([grant(**fields)]).valid_until_ms(at_ms=NOW_MS) == until_ms
