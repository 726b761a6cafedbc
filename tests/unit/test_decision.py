from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quota.decision import (
    CODES_ALLOWED,
    CODES_DENIED,
    FEATURE_NOT_IN_TIER,
    INSUFFICIENT_CREDITS,
    LIMIT_EXCEEDED,
    OK,
    SOFT_LIMIT,
    Decision,
    LimitState,
    Standing,
    decide,
    remaining_of,
)
from quota.values import AMOUNT_MAX

NOW_MS = 1_706_695_200_000  # 2024-01-31T10:00:00Z


def state(
    used: int,
    limit: int | None,
    *,
    per: str = "month",
    mode: str = "hard",
    resets_in_ms: int | None = 60_000,
) -> LimitState:
    resets_at_ms = None if resets_in_ms is None else NOW_MS + resets_in_ms
    return LimitState(per, mode, used, limit, remaining_of(limit, used=used), resets_at_ms)


def ask(
    *limits: LimitState,
    amount: int = 1,
    cost: int = 0,
    credits: int = 0,
    overdraft: bool = False,
    take: bool = True,
    forced: bool = False,
) -> Decision:
    return decide(
        Standing(limits, credits, overdraft),
        feature="tokens",
        amount=amount,
        cost=cost,
        key="k",
        now_ms=NOW_MS,
        take=take,
        forced=forced,
    )


# What is decided


def test_an_allowed_take_answers_with_the_standing_after_it():
    decision = ask(state(2, 5), amount=3, cost=4_000_000, credits=10_000_000)

    assert decision
    assert (decision.code, decision.used, decision.remaining) == (OK, 5, 0)
    assert (decision.cost, decision.credits) == (Decimal(4), Decimal(6))


def test_a_denied_take_answers_with_the_standing_before_it():
    decision = ask(state(3, 5), amount=3, cost=4_000_000, credits=10_000_000)

    assert not decision
    assert (decision.code, decision.used, decision.remaining) == (LIMIT_EXCEEDED, 3, 2)
    assert decision.credits == Decimal(10)


def test_a_check_answers_with_the_standing_before_it():
    decision = ask(state(2, 5), amount=3, cost=1, credits=1, take=False)

    assert decision
    assert (decision.used, decision.remaining, decision.credits_micro) == (2, 3, 1)


def test_limits_are_tested_before_credits():
    assert ask(state(5, 5), cost=1, credits=0).code == LIMIT_EXCEEDED
    assert ask(state(4, 5), cost=1, credits=0).code == INSUFFICIENT_CREDITS


@pytest.mark.parametrize(
    ("cost", "credits", "overdraft", "code"),
    [
        (5, 5, False, OK),
        (5, 4, False, INSUFFICIENT_CREDITS),
        (5, 4, True, OK),
        (5, -9, True, OK),
        (5, -9, False, INSUFFICIENT_CREDITS),
        (0, 0, False, OK),
        (0, -9, False, OK),
    ],
)
def test_credits_are_asked_for_only_when_there_is_a_cost(
    cost: int, credits: int, overdraft: bool, code: str
):
    assert ask(cost=cost, credits=credits, overdraft=overdraft).code == code


def test_overage_shows_as_no_credits():
    decision = ask(cost=5_000_000, credits=2_000_000, overdraft=True)

    assert decision.credits_micro == -3_000_000
    assert decision.credits == Decimal(0)


def test_a_soft_limit_admits_and_says_so():
    reached = ask(state(2, 3, mode="soft"))
    passed = ask(state(3, 3, mode="soft"), amount=2)

    assert reached.code == OK
    assert passed
    assert (passed.code, passed.used, passed.remaining) == (SOFT_LIMIT, 5, 0)


def test_what_is_recorded_is_never_denied():
    decision = ask(state(5, 5), amount=7, cost=3_000_000, credits=0, forced=True)

    assert decision
    assert (decision.code, decision.used, decision.remaining) == (OK, 12, 0)
    assert decision.credits_micro == -3_000_000
    assert ask(state(5, 5, mode="soft"), forced=True).code == SOFT_LIMIT


@pytest.mark.parametrize("limit", [None, AMOUNT_MAX])
@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_a_count_that_no_counter_holds_is_denied_even_when_recorded(limit: int | None, mode: str):
    full = state(AMOUNT_MAX - 1, limit, mode=mode)

    assert ask(full, forced=True)
    assert ask(full, amount=2, forced=True).code == LIMIT_EXCEEDED
    assert ask(full, amount=2).used == AMOUNT_MAX - 1


def test_a_limit_of_none_is_unlimited_and_a_limit_of_zero_is_shut():
    assert ask(state(10**12, None), amount=10**12)
    assert ask(state(0, 0)).code == LIMIT_EXCEEDED


# The headline


def test_the_headline_is_the_limit_with_the_least_remaining():
    decision = ask(
        state(0, None, per="lifetime"), state(0, 100, per="day"), state(90, 150, per="month")
    )

    assert decision.headline == decision.limits[2]
    assert (decision.used, decision.limit, decision.remaining) == (91, 150, 59)
    assert decision.resets_at == datetime(2024, 1, 31, 10, 1, tzinfo=UTC)


def test_of_equal_limits_the_first_is_the_headline():
    decision = ask(state(0, 5, per="day"), state(0, 5, per="month"))

    assert decision.headline == decision.limits[0]


def test_when_a_limit_denies_the_headline_is_the_tightest_that_denies():
    soft = state(9, 9, per="hour", mode="soft")
    day, month = state(3, 5, per="day"), state(2, 3, per="month")

    decision = ask(soft, day, month, state(0, 90, per="year"), amount=4)

    assert decision.code == LIMIT_EXCEEDED
    assert decision.headline == month


def test_without_limits_there_is_no_headline():
    decision = Decision(
        allowed=False,
        code=FEATURE_NOT_IN_TIER,
        feature="x",
        amount=1,
        cost_micro=0,
        credits_micro=0,
        limits=(),
        now_ms=NOW_MS,
        key="k",
    )

    assert decision.headline is None
    assert (decision.used, decision.limit, decision.remaining) == (None, None, None)
    assert decision.resets_at is None
    assert decision.retry_after is None


# When to try again


@pytest.mark.parametrize(
    ("resets_in_ms", "seconds"), [(60_000, 60), (60_001, 61), (1, 1), (0, 1), (-5_000, 1)]
)
def test_a_caller_may_retry_when_the_limit_resets(resets_in_ms: int, seconds: int):
    assert ask(state(5, 5, resets_in_ms=resets_in_ms)).retry_after == seconds


def test_a_caller_may_retry_when_the_last_limit_that_denies_resets():
    decision = ask(
        state(5, 5, resets_in_ms=9_000), state(5, 5, resets_in_ms=2_000), state(1, 5, per="year")
    )

    assert decision.retry_after == 9


@pytest.mark.parametrize(
    "decision",
    [
        ask(state(5, 5, resets_in_ms=None)),
        ask(state(5, 5), state(5, 5, resets_in_ms=None)),
        ask(state(0, 5), amount=6),
        ask(state(0, 5)),
        ask(state(0, 5), cost=1),
        ask(state(AMOUNT_MAX, None)),
        ask(state(6, 5, mode="soft")),
    ],
    ids=["never", "one never", "more than the limit", "allowed", "credits", "full", "soft"],
)
def test_where_waiting_does_not_help_there_is_nothing_to_wait_for(decision: Decision):
    assert decision.retry_after is None


# On the wire


def test_a_decision_becomes_json():
    decision = ask(
        state(2, 5, resets_in_ms=1_500),
        state(1, None, per="lifetime", mode="soft", resets_in_ms=None),
        cost=1_500_000,
        credits=100_000_000,
    )

    assert json.loads(json.dumps(decision.as_dict())) == {
        "allowed": True,
        "code": "ok",
        "feature": "tokens",
        "amount": 1,
        "cost": "1.5",
        "used": 3,
        "limit": 5,
        "remaining": 2,
        "resets_at": "2024-01-31T10:00:01.500Z",
        "retry_after": None,
        "credits": "98.5",
        "replayed": False,
        "local": False,
        "key": "k",
        "limits": [
            {
                "period": "month",
                "mode": "hard",
                "used": 3,
                "limit": 5,
                "remaining": 2,
                "resets_at": "2024-01-31T10:00:01.500Z",
            },
            {
                "period": "lifetime",
                "mode": "soft",
                "used": 2,
                "limit": None,
                "remaining": None,
                "resets_at": None,
            },
        ],
    }
    assert replace(decision, replayed=True).as_dict()["replayed"] is True


# All or nothing


limits = st.lists(
    st.builds(
        state,
        st.integers(0, 20) | st.integers(AMOUNT_MAX - 20, AMOUNT_MAX),
        st.none() | st.integers(0, 30) | st.just(AMOUNT_MAX),
        per=st.sampled_from(["hour", "day", "month", "lifetime"]),
        mode=st.sampled_from(["hard", "soft"]),
        resets_in_ms=st.none() | st.integers(-10, 10**6),
    ),
    max_size=4,
)
standings = st.builds(Standing, limits.map(tuple), st.integers(-20, 20), st.booleans())
amounts = st.integers(1, 20) | st.just(AMOUNT_MAX)


@given(standings, amounts, st.integers(0, 20), st.booleans(), st.booleans())
def test_a_decision_takes_all_or_nothing(
    standing: Standing, amount: int, cost: int, take: bool, forced: bool
):
    decision = ask(
        *standing.limits,
        amount=amount,
        cost=cost,
        credits=standing.credits,
        overdraft=standing.overdraft,
        take=take,
        forced=forced,
    )

    taken = amount if decision and take else 0
    assert decision.code in (CODES_ALLOWED if decision else CODES_DENIED)
    assert decision.credits_micro == standing.credits - (cost if taken else 0)
    for before, after in zip(standing.limits, decision.limits, strict=True):
        assert after.used == before.used + taken <= AMOUNT_MAX
        assert after.remaining == remaining_of(after.limit, used=after.used)
        assert (after.per, after.mode, after.limit) == (before.per, before.mode, before.limit)
        if taken and not forced and before.mode == "hard" and before.limit is not None:
            assert after.used <= before.limit


@given(standings, amounts, st.integers(0, 20))
def test_a_check_says_what_the_take_would(standing: Standing, amount: int, cost: int):
    asked, taken = (
        ask(
            *standing.limits,
            amount=amount,
            cost=cost,
            credits=standing.credits,
            overdraft=standing.overdraft,
            take=take,
        )
        for take in (False, True)
    )

    assert (asked.allowed, asked.code) == (taken.allowed, taken.code)
    assert asked.retry_after == taken.retry_after


@given(standings, amounts, st.integers(0, 20))
def test_what_is_denied_for_credits_passes_with_enough_of_them(
    standing: Standing, amount: int, cost: int
):
    denied = ask(*standing.limits, amount=amount, cost=cost, credits=cost - 1)
    paid = ask(*standing.limits, amount=amount, cost=cost, credits=cost)

    assert (denied.code == INSUFFICIENT_CREDITS) is (cost > 0 and paid.allowed)
    assert paid.code != INSUFFICIENT_CREDITS


@given(standings, amounts)
def test_a_retry_after_the_wait_finds_room(standing: Standing, amount: int):
    decision = ask(*standing.limits, amount=amount)
    if decision.retry_after is None:
        return

    later_ms = NOW_MS + decision.retry_after * 1000
    reset = [
        limit._replace(used=0, remaining=limit.limit)
        if limit.resets_at_ms is not None and limit.resets_at_ms <= later_ms
        else limit
        for limit in standing.limits
        if limit.used + amount <= AMOUNT_MAX
    ]
    assert ask(*reset, amount=amount)
