from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from quota.account import Account
from quota.burndown import KINDS, Grant
from quota.decision import Limit
from quota.period import CALENDAR_PERIODS, Calendar, Window, window_at
from quota.rules import per_code
from quota.standing import Profile, counter_line, head_text, read_counters, windows_text
from quota.values import AMOUNT_MAX, MICRO_MAX

END_MS = 1_000

moments = st.integers(0, END_MS)
grants = st.builds(
    Grant,
    id=st.uuids(),
    name=st.none() | st.text(max_size=20),
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
calendars = st.builds(
    Calendar,
    timezone=st.sampled_from(["UTC", "Europe/Berlin", "Asia/Kathmandu"]),
    anchor_ms=st.integers(0, 2**41),
    cycle_months=st.integers(1, 12),
)
limits = st.lists(
    st.builds(
        Limit,
        per=st.sampled_from([*CALENDAR_PERIODS, "window:1", "window:300"]),
        mode=st.just("hard"),
        max=st.just(5),
    ),
    max_size=5,
)


@given(calendar=calendars, purse=purses, at_ms=moments, overage=st.integers(0, MICRO_MAX))
def test_a_profile_comes_back_from_its_text(
    calendar: Calendar, purse: list[Grant], at_ms: int, overage: int
):
    profile = Profile.of(calendar, Account(purse, overage), at_ms=at_ms)

    assert Profile.load(profile.dump()) == profile
    assert Profile.load(profile.dump().encode()) == profile


@given(purse=purses, at_ms=moments, costs=st.lists(st.integers(1, 80), max_size=6))
def test_the_account_of_what_the_hash_says_is_the_account_that_was_charged(
    purse: list[Grant], at_ms: int, costs: list[int]
):
    account = Account(purse)
    account.repay(at_ms=at_ms)
    profile = Profile.load(Profile.of(Calendar(), account, at_ms=at_ms).dump())
    net = profile.net

    for cost in costs:  # the script only takes from a sum
        account.charge(cost, at_ms=at_ms)
        net -= cost
    from_sum = profile.account(net)

    assert from_sum.grants() == account.grants()
    assert from_sum.overage == account.overage
    assert from_sum.net(at_ms=at_ms) == account.net(at_ms=at_ms) == net


@given(purse=purses, at_ms=moments, cost=st.integers(0, 300), later_ms=moments)
def test_a_profile_rolls_on_as_the_account_would_have(
    purse: list[Grant], at_ms: int, cost: int, later_ms: int
):
    at_ms, later_ms = sorted((at_ms, later_ms))
    account = Account(purse)
    account.repay(at_ms=at_ms)
    profile = Profile.of(Calendar(), account, at_ms=at_ms)
    account.charge(cost, at_ms=at_ms)

    rolled = Profile.load(profile.dump()).account(profile.net - cost)
    rolled.repay(at_ms=later_ms)
    account.repay(at_ms=later_ms)

    assert Profile.of(Calendar(), rolled, at_ms=later_ms) == Profile.of(
        Calendar(), account, at_ms=later_ms
    )


def test_the_head_says_for_ever_as_zero():
    assert head_text(epoch=3, valid_until_ms=None, tier="free") == "3,0,free"
    assert head_text(epoch=3, valid_until_ms=17, tier="free") == "3,17,free"


@given(calendar=calendars, at_ms=st.integers(0, 2**41))
def test_the_windows_hold_the_instant_and_can_be_found_by_their_code(
    calendar: Calendar, at_ms: int
):
    text = windows_text(calendar, at_ms)

    for per in CALENDAR_PERIODS:
        if per == "lifetime":  # it has no window to pass
            assert f";{per_code(per)}," not in text
            continue
        numbers = text.split(f";{per_code(per)},", 1)[1].split(";", 1)[0]  # as the script does
        start_ms, end_ms = map(int, numbers.split(","))
        assert (start_ms, end_ms) == window_at(per, at_ms, calendar)
        assert start_ms <= at_ms < end_ms


@given(of_rule=limits, data=st.data())
def test_counters_come_back_from_their_line(of_rule: list[Limit], data: st.DataObject):
    ends = st.none() | st.integers(1, 2**47)
    counts = st.integers(0, AMOUNT_MAX)
    used: dict[str, tuple[Window, int]] = {
        limit.per: (Window(0, data.draw(ends)), data.draw(counts)) for limit in of_rule
    }

    line = counter_line(of_rule, used)

    expected: list[Any] = [
        (limit.per, used[limit.per][0].end_ms or 0, used[limit.per][1]) for limit in of_rule
    ]
    assert read_counters(line) == expected


def test_no_limits_are_an_empty_line():
    assert counter_line([], {}) == b"|"
    assert read_counters(b"|") == []
