from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quota.account import Account
from quota.burndown import Grant
from quota.decision import Limit
from quota.held import Held
from quota.period import Calendar, Window, window_at
from quota.rolling import Rolled, account_at, held_of, rolled
from quota.standing import Profile, counter_line, read_counters, standing_fields
from tests.unit.purses import DAY_MS, HOUR_MS, START_MS, Step, Walk, grants, steps

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Fields = dict[bytes, bytes]

CALENDAR = Calendar(anchor_ms=START_MS)
ONE, TWO = UUID(int=1), UUID(int=2)
# A profile has what the walk through time needs; how a grant rolls over at a reset is PostgreSQL's.
purses = st.lists(
    grants().map(lambda grant: replace(grant, min_rollover=0, max_rollover=0)),
    max_size=5,
    unique_by=lambda grant: grant.id,
)


def grant(number: int = 1, left: int = 100, **fields: int | str | None) -> Grant:
    plain = Grant(
        id=UUID(int=number), amount=100, left=left, effective_at_ms=START_MS, created_at_ms=0
    )
    return replace(plain, **fields)  # type: ignore[arg-type]


def held(key: str = "a", expires_at_ms: int = START_MS + HOUR_MS, **fields: object) -> Held:
    return replace(Held(key, "tokens", 5, 0, (1, 1), expires_at_ms, {}), **fields)  # type: ignore[arg-type]


def stored(
    account: Account, holds: Sequence[Held] = (), *, counters: Mapping[bytes, bytes] | None = None
) -> tuple[Fields, bytes]:
    """The hash and the profile of a user whose *account* stands where it is."""
    at_ms = account.at_ms
    texts = standing_fields(
        CALENDAR, account, holds, epoch=3, tier="free", allowance="5/day", at_ms=at_ms
    )
    profile = Profile.of(CALENDAR, account, at_ms=at_ms)
    return {**_bytes(texts), **(counters or {})}, profile.dump().encode()


def _bytes(texts: Mapping[str, str | bytes] | Mapping[bytes, str | bytes]) -> Fields:
    return {_of(name): _of(text) for name, text in texts.items()}


def _of(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode()


def after(fields: Fields, new: Rolled) -> Fields:
    """The hash with what the roll script puts into it."""
    left = {name: text for name, text in fields.items() if name not in new.gone}
    return {**left, **_bytes(new.fields)}


def account_of(*of_grants: Grant, overage: int = 0) -> Account:
    account = Account(of_grants, overage, at_ms=START_MS)
    account.advance(START_MS)
    return account


def state_of(account: Account) -> object:
    of_grants = [
        replace(grant, renewed_at_ms=grant.renewed_at_ms or grant.effective_at_ms)
        for grant in account.grants()
    ]
    holds = {key: payments for key, payments in account.holds.items() if payments}
    return of_grants, account.overage, holds


# Credits


@given(purse=purses, taken=steps, hours=st.lists(st.integers(0, 400), max_size=5), data=st.data())
def test_a_roll_comes_to_where_the_account_walks_and_its_holds_end_in_order(
    purse: list[Grant], taken: list[Step], hours: list[int], data: st.DataObject
):
    account, holds = _with_holds(purse, taken, data)
    fields, profile_text = stored(account, holds)
    at_ms = account.at_ms + sum(hours) * HOUR_MS

    new = rolled(fields, profile_text, at_ms=at_ms)

    for one in sorted(holds, key=lambda held: (held.expires_at_ms, held.key)):
        if one.expires_at_ms <= at_ms:
            account.advance(one.expires_at_ms)
            account.settle(one.key, 0)
    account.advance(at_ms)
    found = Profile.load(new.profile)
    assert state_of(found.account(found.net)) == state_of(account)
    assert (found.at_ms, found.net) == (at_ms, account.net(at_ms=at_ms))
    assert new.fields[b"c"] == str(found.net)


@given(purse=purses, taken=steps, hours=st.lists(st.integers(0, 400), max_size=5), data=st.data())
def test_a_roll_in_many_steps_comes_to_the_same_as_one(
    purse: list[Grant], taken: list[Step], hours: list[int], data: st.DataObject
):
    account, holds = _with_holds(purse, taken, data)
    counted = {b"f:tokens": line(9 * DAY_MS, 100), b"p:tokens": line(-1, 0)}
    fields, profile_text = stored(account, holds, counters=counted)
    at_ms = account.at_ms
    by_steps, by_steps_text = fields, profile_text
    ended: list[Held] = []

    for hour in hours:
        at_ms += hour * HOUR_MS
        new = rolled(by_steps, by_steps_text, at_ms=at_ms)
        by_steps, by_steps_text = after(by_steps, new), new.profile.encode()
        ended += new.ended
    once = rolled(fields, profile_text, at_ms=at_ms)

    if hours:
        assert by_steps == after(fields, once)
        assert ended == once.ended
        assert new.due_at_ms == once.due_at_ms
        one, other = Profile.load(by_steps_text), Profile.load(once.profile)
        assert state_of(one.account(one.net)) == state_of(other.account(other.net))


def _with_holds(
    purse: list[Grant], taken: list[Step], data: st.DataObject
) -> tuple[Account, list[Held]]:
    """An account with a history, and its holds as Redis has them, each with some time to go."""
    walk = Walk(Account(purse, at_ms=START_MS))
    for step in [*taken, (0, "hold", 40), (3, "hold", 30)]:
        walk.take(step)
    account = walk.account
    ends = st.integers(1, 900).map(lambda hours: account.at_ms + hours * HOUR_MS)
    holds = [
        held(
            key,
            data.draw(ends),
            cost=sum(one.amount for one in payments),
            ends={"day": 9 * DAY_MS, "lifetime": 0},
        )
        for key, payments in account.holds.items()
    ]
    return account, holds


@pytest.mark.parametrize(
    ("expires_ms", "repaid"),
    [
        (START_MS + DAY_MS - 1, 30),  # what came back in time pays the overage
        (START_MS + DAY_MS, 0),  # the grant is over from that instant on
        (START_MS + DAY_MS + 1, 0),
    ],
)
def test_a_hold_ends_at_its_own_instant_beside_the_end_of_the_grant_that_paid(
    expires_ms: int, repaid: int
):
    account = account_of(grant(left=40, expires_at_ms=START_MS + DAY_MS))
    account.hold("a", 40, at_ms=START_MS)
    account.charge(30, at_ms=START_MS)
    fields, profile_text = stored(account, [held("a", expires_ms, cost=40)])

    new = rolled(fields, profile_text, at_ms=START_MS + 9 * DAY_MS)

    assert new.fields[b"c"] == str(repaid - 30)
    assert [one.key for one in new.ended] == ["a"]


@pytest.mark.parametrize(
    ("expires_ms", "before", "then"),
    [
        (START_MS + HOUR_MS, "30", "100"),  # it comes back
        (START_MS + DAY_MS, "30", "100"),  # it was set back at this instant
        (START_MS + 25 * HOUR_MS, "100", "100"),  # nothing comes back to what was set back since
    ],
)
def test_a_hold_ends_at_its_own_instant_beside_a_recurrence(
    expires_ms: int, before: str, then: str
):
    account = account_of(grant(every="day"))
    account.hold("a", 70, at_ms=START_MS)
    fields, profile_text = stored(account, [held("a", expires_ms, cost=70)])

    assert rolled(fields, profile_text, at_ms=expires_ms - 1).fields[b"c"] == before
    assert rolled(fields, profile_text, at_ms=expires_ms).fields[b"c"] == then


def test_a_hold_expires_at_its_instant_and_not_before():
    account = account_of(grant())
    account.hold("a", 40, at_ms=START_MS)
    expires_ms = START_MS + HOUR_MS
    fields, profile_text = stored(account, [held("a", expires_ms, cost=40)])

    before = rolled(fields, profile_text, at_ms=expires_ms - 1)
    then = rolled(fields, profile_text, at_ms=expires_ms)

    assert (before.ended, before.gone, before.due_at_ms) == ([], [b"j"], expires_ms)
    assert before.fields[b"c"] == "60"
    assert before.fields[b"o:a"] == fields[b"o:a"].decode()
    assert (then.ended, then.gone) == (held_of(fields), [b"j", b"o:a"])
    assert (then.fields[b"c"], then.due_at_ms) == ("100", None)
    assert b"o:a" not in then.fields


def test_holds_end_in_the_order_of_their_instants_then_keys():
    holds = [held("b", START_MS + 2), held("c", START_MS + 1), held("a", START_MS + 2)]
    fields, profile_text = stored(account_of(), holds)

    new = rolled(fields, profile_text, at_ms=START_MS + 2)

    assert [one.key for one in held_of(fields)] == ["c", "a", "b"]
    assert [one.key for one in new.ended] == ["c", "a", "b"]


def test_a_roll_takes_what_was_spent_and_held_since_the_profile():
    account = account_of(grant())
    fields, profile_text = stored(account)
    expires_ms = START_MS + HOUR_MS
    one = held("a", expires_ms, cost=40)
    fields |= {b"o:a": one.dump([(40, True)]).encode(), b"j": b"h,90,40,a\0", b"c": b"45"}

    before = rolled(fields, profile_text, at_ms=START_MS + 1)
    then = rolled(fields, profile_text, at_ms=expires_ms)

    assert before.fields[b"c"] == "45"
    assert before.fields[b"o:a"] == one.dump([(40, True)])
    assert then.fields[b"c"] == "85"
    assert b"j" in then.gone


def test_a_roll_keeps_head_and_moves_the_windows():
    fields, profile_text = stored(account_of(grant(expires_at_ms=START_MS + 9 * DAY_MS)))

    new = rolled(fields, profile_text, at_ms=START_MS + DAY_MS)

    assert new.fields[b"h"] == f"3,{START_MS + 9 * DAY_MS},free,5/day"
    day = window_at("day", START_MS + DAY_MS, CALENDAR)
    assert f";d,{day.start_ms},{day.end_ms},{START_MS};" in str(new.fields[b"w"])


def test_the_account_at_an_instant_has_the_holds_that_are_over_ended():
    account = account_of(grant())
    account.hold("a", 40, at_ms=START_MS)
    account.hold("b", 10, at_ms=START_MS)
    fields, profile_text = stored(
        account, [held("a", START_MS + 5, cost=40), held("b", START_MS + 9, cost=10)]
    )

    found = account_at(fields, Profile.load(profile_text), at_ms=START_MS + 5)

    assert list(found.holds) == ["b"]
    assert found.net(at_ms=START_MS + 5) == 90


# Units

LIMITS = [Limit("day", "hard", 9), Limit("window:300", "hard", 9), Limit("lifetime", "soft", 9)]


def line(day_end_ms: int, used: int, window_end_ms: int = 1, window_used: int = 0) -> bytes:
    counted = {
        "day": (Window(0, day_end_ms), used),
        "window:300": (Window(0, window_end_ms), window_used),
        "lifetime": (Window(0, None), used),
    }
    return counter_line(LIMITS, counted)


def test_units_leave_the_periods_that_counted_them_and_no_others():
    ends = {"day": 500, "window:300": 700, "lifetime": 0}
    counters = {
        b"f:tokens": line(500, 8, 700, 6),
        b"p:tokens": line(400, 3),
        b"f:other": line(500, 8, 700, 6),
    }
    fields, profile_text = stored(account_of(), [held(ends=ends)], counters=counters)

    new = rolled(fields, profile_text, at_ms=START_MS + HOUR_MS)

    assert read_counters(_of(new.fields[b"f:tokens"])) == [
        ("day", 500, 3), ("window:300", 700, 1), ("lifetime", 0, 3),
    ]  # fmt: skip
    assert b"f:other" not in new.fields


def test_units_leave_the_period_before_where_that_one_counted_them():
    ends = {"day": 400, "lifetime": 0}
    counters = {b"f:tokens": line(500, 8), b"p:tokens": line(400, 7)}
    fields, profile_text = stored(account_of(), [held(ends=ends)], counters=counters)

    new = rolled(fields, profile_text, at_ms=START_MS + HOUR_MS)

    assert read_counters(_of(new.fields[b"f:tokens"]))[0] == ("day", 500, 8)
    assert read_counters(_of(new.fields[b"p:tokens"]))[0] == ("day", 400, 2)


def test_units_of_two_holds_leave_together():
    ends = {"day": 500}
    fields, profile_text = stored(
        account_of(),
        [held("a", ends=ends), held("b", ends=ends, amount=2)],
        counters={b"f:tokens": line(500, 8)},
    )

    new = rolled(fields, profile_text, at_ms=START_MS + HOUR_MS)

    assert read_counters(_of(new.fields[b"f:tokens"]))[0] == ("day", 500, 1)


def test_a_window_that_was_opened_stays_open_when_nothing_counts_in_it_any_more():
    fields, profile_text = stored(
        account_of(),
        [held(ends={"window:300": 700})],
        counters={b"f:tokens": line(500, 5, 700, 5)},
    )

    new = rolled(fields, profile_text, at_ms=START_MS + HOUR_MS)

    assert read_counters(_of(new.fields[b"f:tokens"]))[1] == ("window:300", 700, 0)


def test_a_feature_that_has_no_counters_is_left_alone():
    fields, profile_text = stored(account_of(), [held(ends={"day": 500})])

    new = rolled(fields, profile_text, at_ms=START_MS + HOUR_MS)

    assert not [name for name in new.fields if name.startswith((b"f:", b"p:"))]


@pytest.mark.parametrize("key", ["a|b", "a;b,c", "a\nb", "ü😀", "j", "o:"])
def test_a_hold_of_any_key_is_found_and_goes(key: str):
    account = account_of(grant())
    fields, profile_text = stored(account)
    name = f"o:{key}".encode()
    fields |= {
        name: held(key, cost=40).dump([(40, True)]).encode(),
        b"j": f"h,100,40,{key}\0".encode(),
        b"c": b"60",
    }

    new = rolled(fields, profile_text, at_ms=START_MS + HOUR_MS)

    assert [one.key for one in new.ended] == [key]
    assert list(new.gone) == [b"j", name]
    assert new.fields[b"c"] == "100"
