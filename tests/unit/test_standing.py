from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from quota.account import Account
from quota.burndown import Grant
from quota.decision import Limit
from quota.held import Held
from quota.period import CALENDAR_PERIODS, Calendar, Window, window_at
from quota.rules import per_code
from quota.standing import (
    Profile,
    counter_line,
    head_text,
    hold_fields,
    read_counters,
    standing_fields,
    windows_text,
)
from quota.values import AMOUNT_MAX, MICRO_MAX
from tests.unit.purses import HOUR_MS, START_MS, Step, Walk, grants, steps

# A profile has what the walk through time needs; how a grant rolls over at a reset is PostgreSQL's.
purses = st.lists(
    grants().map(lambda grant: replace(grant, min_rollover=0, max_rollover=0)),
    max_size=5,
    unique_by=lambda grant: grant.id,
)
keys = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=5
)
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


def walked(purse: list[Grant], taken: list[Step], overage: int = 0) -> Account:
    """An account with a history: charges, holds that are open, grants that recurred."""
    walk = Walk(Account(purse, overage, at_ms=START_MS))
    for step in taken:
        walk.take(step)
    return walk.account


def state_of(account: Account) -> object:
    """All that an account is, however it came to be."""
    of_grants = [
        replace(grant, renewed_at_ms=grant.renewed_at_ms or grant.effective_at_ms)
        for grant in account.grants()
    ]
    holds = {key: payments for key, payments in account.holds.items() if payments}
    return of_grants, account.overage, holds


class Script:
    """What the admit script does with credits: it knows a sum, and what each hold would give back."""

    def __init__(self, profile: Profile, account: Account) -> None:
        self.net = profile.net
        self.journal = ""
        self.segments = {key: account.returnable(key) for key in profile.holds}

    def reserve(self, key: str, cost: int) -> None:
        if cost:
            self.journal += f"h,{self.net},{cost},{key}\0"
            self.segments[key] = [(cost, True)]
            self.net -= cost

    def settle(self, key: str, kept: int) -> None:
        segments = self.segments.pop(key)
        cost = sum(amount for amount, _ in segments)
        kept = min(kept, cost)
        self.journal += f"s,{self.net},{kept},{key}\0"
        back = cost - kept
        for amount, returns in reversed(segments):
            part = min(back, amount)
            back -= part
            self.net += part if returns else 0


@given(
    calendar=calendars,
    purse=purses,
    taken=steps,
    overage=st.sampled_from([0, 7, MICRO_MAX]),
)
def test_a_profile_comes_back_from_its_text(
    calendar: Calendar, purse: list[Grant], taken: list[Step], overage: int
):
    account = walked(purse, taken, overage)
    profile = Profile.of(calendar, account, at_ms=account.at_ms)

    assert Profile.load(profile.dump()) == profile
    assert Profile.load(profile.dump().encode()) == profile
    assert state_of(profile.account(profile.net)) == state_of(account)


@given(purse=purses, taken=steps, costs=st.lists(st.integers(1, 80), max_size=6))
def test_the_account_of_what_the_hash_says_is_the_account_that_was_charged(
    purse: list[Grant], taken: list[Step], costs: list[int]
):
    account = walked(purse, taken)
    at_ms = account.at_ms
    profile = Profile.load(Profile.of(Calendar(), account, at_ms=at_ms).dump())
    net = profile.net

    for cost in costs:  # the script only takes from a sum
        account.charge(cost, at_ms=at_ms)
        net -= cost
    from_sum = profile.account(net)

    assert state_of(from_sum) == state_of(account)
    assert from_sum.net(at_ms=at_ms) == account.net(at_ms=at_ms) == net


@given(purse=purses, taken=steps, data=st.data())
def test_the_account_of_a_journal_is_the_account_that_did_the_same(
    purse: list[Grant], taken: list[Step], data: st.DataObject
):
    account = walked(purse, taken)
    profile = Profile.load(Profile.of(Calendar(), account, at_ms=account.at_ms).dump())
    until_ms = account.valid_until_ms(at_ms=account.at_ms)
    script = Script(profile, account)

    for verb in data.draw(st.lists(st.sampled_from("chs"), max_size=8)):
        # Until then nothing moves by itself: the script may decide, and asks nobody.
        at_ms = account.at_ms + data.draw(st.integers(0, 40)) * HOUR_MS
        if until_ms is None or at_ms < until_ms:
            assert account.advance(at_ms) == []
        amount = data.draw(st.integers(0, 80))
        if verb == "c":
            account.charge(amount, at_ms=account.at_ms)
            script.net -= amount
        elif verb == "h":
            key = data.draw(keys.filter(lambda key: key not in account.holds))
            account.hold(key, amount, at_ms=account.at_ms)
            script.reserve(key, amount)
        elif script.segments:
            key = data.draw(st.sampled_from(sorted(script.segments)))
            account.settle(key, amount)
            script.settle(key, amount)

        assert script.net == account.net(at_ms=account.at_ms)
    found = profile.account(script.net, script.journal.encode())

    found.advance(account.at_ms)
    assert state_of(found) == state_of(account)


@given(purse=purses, taken=steps, cost=st.integers(0, 300), hours=st.integers(0, 2_000))
def test_a_profile_rolls_on_as_the_account_would_have(
    purse: list[Grant], taken: list[Step], cost: int, hours: int
):
    account = walked(purse, taken)
    profile = Profile.of(Calendar(), account, at_ms=account.at_ms)
    later_ms = account.at_ms + hours * HOUR_MS
    account.charge(cost, at_ms=account.at_ms)

    rolled = Profile.load(profile.dump()).account(profile.net - cost)

    assert rolled.advance(later_ms) == account.advance(later_ms)
    assert state_of(rolled) == state_of(account)


def test_the_head_says_for_ever_as_zero():
    def head(valid_until_ms: int | None) -> str:
        return head_text(epoch=3, valid_until_ms=valid_until_ms, tier="free", allowance="5/day")

    assert head(None) == "3,0,free,5/day"
    assert head(17) == "3,17,free,5/day"


def held(key: str, expires_at_ms: int, cost: int = 0) -> Held:
    return Held(key, "tokens", 5, cost, (1, 1), expires_at_ms, {"day": 9})


def test_the_fields_of_a_user_are_those_of_the_account_the_calendar_and_the_holds():
    one = UUID(int=1)
    account = Account(
        [Grant(id=one, amount=100, left=100, effective_at_ms=0, created_at_ms=0, expires_at_ms=20)]
    )
    account.hold("a", 30, at_ms=5)

    fields = standing_fields(
        Calendar(), account, [held("a", 15, 30), held("b", 25)],
        epoch=3, tier="free", allowance="-", at_ms=5,
    )  # fmt: skip

    assert fields == {
        "h": "3,15,free,-",
        "c": "70",
        "w": windows_text(Calendar(), 5),
        "o:a": "15|tokens|5|30|1/1|d=9,|30+,",
        "o:b": "25|tokens|5|0|1/1|d=9,|",
    }


def test_credits_stand_until_they_change_or_the_first_hold_expires():
    account = Account([])
    account.advance(5)

    def head(*holds: Held) -> object:
        return standing_fields(
            Calendar(), account, holds, epoch=3, tier="free", allowance="-", at_ms=5
        )["h"]

    assert head() == "3,0,free,-"
    assert head(held("a", 15), held("b", 12)) == "3,12,free,-"


def test_a_hold_that_the_account_does_not_know_took_nothing():
    assert hold_fields(Account([]), [held("a", 15)]) == {"o:a": "15|tokens|5|0|1/1|d=9,|"}


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
        start_ms, end_ms, before_ms = map(int, numbers.split(","))
        assert (start_ms, end_ms) == window_at(per, at_ms, calendar)
        assert start_ms <= at_ms < end_ms
        assert (before_ms, start_ms) == window_at(per, start_ms - 1, calendar)


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


def test_a_period_without_a_count_is_over():
    of_rule = [Limit("day", "hard", 5), Limit("window:300", "hard", 5)]

    line = counter_line(of_rule, {"day": (Window(0, 99), 3)})

    assert read_counters(line) == [("day", 99, 3), ("window:300", 1, 0)]
