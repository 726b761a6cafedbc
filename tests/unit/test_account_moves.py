from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quota.account import Account, Move, Payment, payment_rows, payments_of
from quota.burndown import Change, Grant
from quota.values import instant_ms
from tests.unit.purses import DAY_MS, HOUR_MS, START_MS, Step, Walk, copy_of, purses, steps

ONE, TWO = UUID(int=1), UUID(int=2)


def at(text: str) -> int:
    return instant_ms(datetime.fromisoformat(text).replace(tzinfo=UTC))


def grant(number: int = 1, **fields: object) -> Grant:
    plain = Grant(
        id=UUID(int=number), amount=100, left=100, effective_at_ms=START_MS, created_at_ms=0
    )
    return replace(plain, **fields)  # type: ignore[arg-type]


def account_of(*grants: Grant, overage: int = 0) -> Account:
    account = Account(grants, overage, at_ms=START_MS)
    account.advance(START_MS)
    return account


def left_in(account: Account) -> list[int]:
    return [grant.left for grant in sorted(account.grants(), key=lambda grant: grant.id)]


# Any sequence of steps


@given(purse=purses, taken=steps, overage=st.sampled_from([0, 0, 25]))
def test_the_identity_of_credits_holds_after_each_step(
    purse: list[Grant], taken: list[Step], overage: int
):
    walk = Walk(Account(purse, overage, at_ms=START_MS))
    walk.check()

    for step in taken:
        walk.take(step)

        walk.check()


@given(purse=purses, taken=steps, data=st.data())
def test_a_run_that_is_split_anywhere_comes_to_the_same(
    purse: list[Grant], taken: list[Step], data: st.DataObject
):
    at_once, split = (Walk(Account(purse, at_ms=START_MS)) for _ in range(2))

    for step in taken:
        for stop in data.draw(st.lists(st.integers(0, 999), max_size=2).map(sorted)):
            split.note(split.account.advance(split.at_ms + step[0] * HOUR_MS * stop // 1000))
        at_once.take(step)
        split.take(step)

    assert split.account.grants() == at_once.account.grants()
    assert split.account.overage == at_once.account.overage
    assert split.account.holds == at_once.account.holds
    assert split.moved == at_once.moved


@given(purse=purses, taken=steps, stored=st.sets(st.integers(0, 11)))
def test_an_account_that_is_stored_and_read_again_goes_on_as_it_would_have(
    purse: list[Grant], taken: list[Step], stored: set[int]
):
    kept, read = (Walk(Account(purse, at_ms=START_MS)) for _ in range(2))

    for number, step in enumerate(taken):
        if number in stored:
            read.account = copy_of(read.account)
        kept.take(step)
        read.take(step)

    assert _plain(read.account) == _plain(kept.account)
    assert read.moved == kept.moved


def _plain(account: Account) -> object:
    grants = [
        replace(one, renewed_at_ms=one.renewed_at_ms or one.effective_at_ms)
        for one in account.grants()
    ]
    return grants, account.overage, account.holds


@given(purse=purses, taken=steps, later=st.lists(st.integers(0, 2_000), max_size=4))
def test_net_and_what_holds_would_give_back_stay_until_the_instant_that_is_told(
    purse: list[Grant], taken: list[Step], later: list[int]
):
    walk = Walk(Account(purse, at_ms=START_MS))
    for step in taken:
        walk.take(step)
    account = walk.account

    until_ms = account.valid_until_ms(at_ms=account.at_ms)

    assert until_ms is None or until_ms > account.at_ms
    probes = [account.at_ms + hours * HOUR_MS for hours in later]
    probes += [] if until_ms is None else [until_ms - 1]
    for probe_ms in probes:
        if until_ms is None or probe_ms < until_ms:
            moved = copy_of(account)
            assert moved.advance(probe_ms) == []
            assert moved.net(at_ms=probe_ms) == account.net(at_ms=account.at_ms)
            assert account.net(at_ms=probe_ms) == account.net(at_ms=account.at_ms)
            for key in account.holds:
                assert moved.returnable(key) == account.returnable(key)


@given(purse=purses, taken=steps)
def test_a_hold_gives_back_what_it_said_it_would(purse: list[Grant], taken: list[Step]):
    walk = Walk(Account(purse, at_ms=START_MS))
    for step in taken:
        walk.take(step)
    account = walk.account

    for key in list(
        account.holds
    ):  # one after the other: an end does not change what another gives
        told = sum(amount for amount, returns in account.returnable(key) if returns)
        before = account.net(at_ms=account.at_ms)
        account.settle(key, 0)
        assert account.net(at_ms=account.at_ms) == before + told


# Recurring grants


@pytest.mark.parametrize(
    ("every", "first", "second"),
    [
        ("day", "2025-02-01", "2025-02-02"),
        ("week", "2025-02-07", "2025-02-14"),
        ("month", "2025-02-28", "2025-03-31"),  # clamped, but not moved
    ],
)
def test_a_recurring_grant_is_set_back_at_each_recurrence(every: str, first: str, second: str):
    account = account_of(grant(every=every))
    account.charge(60, at_ms=START_MS)

    assert account.valid_until_ms(at_ms=START_MS) == at(first)
    assert account.advance(at(first) - 1) == []
    assert account.advance(at(first)) == [Move("renewed", ONE, 60, at(first))]
    assert account.valid_until_ms(at_ms=at(first)) == at(second)
    assert account.advance(at(second)) == []
    assert account.grants()[0].renewed_at_ms == at(second)


def test_a_recurrence_is_counted_from_the_anchor_where_there_is_one():
    account = account_of(grant(every="day", left=1, anchor_ms=START_MS - 5 * HOUR_MS))

    assert account.valid_until_ms(at_ms=START_MS) == START_MS + 19 * HOUR_MS


def test_recurrences_that_nobody_looked_at_are_one():
    account = account_of(grant(every="day"))
    account.charge(60, at_ms=START_MS)

    assert account.advance(at("2025-02-10T12:00")) == [Move("renewed", ONE, 60, at("2025-02-10"))]
    assert left_in(account) == [100]


def test_overage_is_paid_by_every_recurrence_that_passes():
    account = account_of(grant(every="day"))
    account.charge(350, at_ms=START_MS)

    moves = account.advance(at("2025-02-10"))

    assert [move for move in moves if move.kind == "repaid"] == [
        Move("repaid", ONE, 100, at("2025-02-01")),
        Move("repaid", ONE, 100, at("2025-02-02")),
        Move("repaid", ONE, 50, at("2025-02-03")),
    ]
    assert (account.overage, account.net(at_ms=account.at_ms)) == (0, 100)


def test_a_grant_that_is_over_does_not_recur():
    ends_ms = START_MS + 2 * DAY_MS
    account = account_of(grant(every="day", expires_at_ms=ends_ms))
    account.charge(60, at_ms=START_MS)

    assert account.advance(START_MS + 9 * DAY_MS) == [Move("renewed", ONE, 60, START_MS + DAY_MS)]
    assert account.valid_until_ms(at_ms=START_MS + 9 * DAY_MS) is None


def test_credits_above_its_amount_lapse_when_a_grant_recurs():
    account = account_of(grant(every="day", left=130))

    assert account.advance(START_MS + DAY_MS) == [Move("lapsed", ONE, 30, START_MS + DAY_MS)]


# Another amount from some instant on


CHANGE_MS = START_MS + 10 * DAY_MS


@pytest.mark.parametrize(
    ("amount", "left", "move"),
    [
        (1_000, 920, Move("renewed", ONE, 900, CHANGE_MS)),  # of 100 with 80 used
        (90, 10, Move("lapsed", ONE, 10, CHANGE_MS)),
        (80, 0, Move("lapsed", ONE, 20, CHANGE_MS)),
        (50, 0, Move("lapsed", ONE, 20, CHANGE_MS)),
        (0, 0, Move("lapsed", ONE, 20, CHANGE_MS)),
    ],
)
def test_what_was_used_stays_used_when_the_amount_changes(amount: int, left: int, move: Move):
    account = account_of(grant(every="month", changes_to=(Change(CHANGE_MS, amount, "month"),)))
    account.charge(80, at_ms=START_MS)

    assert account.valid_until_ms(at_ms=START_MS) == CHANGE_MS
    assert account.advance(CHANGE_MS) == [move]
    assert left_in(account) == [left]
    found = account.grants()[0]
    assert (found.amount, found.changes_to, found.changed_at_ms) == (amount, (), CHANGE_MS)
    account.advance(at("2025-02-28"))
    assert left_in(account) == [amount]


@pytest.mark.parametrize("every", ["day", "week"])
def test_what_was_used_stays_used_until_the_next_of_the_new_recurrences(every: str):
    change_ms = START_MS + 10 * DAY_MS + HOUR_MS
    account = account_of(grant(every="month", changes_to=(Change(change_ms, 90, every),)))
    account.charge(80, at_ms=START_MS)

    assert account.advance(change_ms) == [Move("lapsed", ONE, 10, change_ms)]
    assert left_in(account) == [10]
    renewed_ms = account.valid_until_ms(at_ms=change_ms)
    assert renewed_ms == START_MS + (11 if every == "day" else 14) * DAY_MS
    assert account.advance(renewed_ms) == [Move("renewed", ONE, 80, renewed_ms)]


def test_a_recurrence_at_the_instant_of_a_change_is_of_the_new_amount():
    at_ms = START_MS + DAY_MS
    account = account_of(grant(every="day", changes_to=(Change(at_ms, 40, "day"),)))
    account.charge(70, at_ms=START_MS)

    account.advance(at_ms)

    assert left_in(account) == [40]


def test_a_change_that_nobody_saw_and_a_recurrence_after_it_leave_the_new_amount():
    account = account_of(grant(every="day", changes_to=(Change(START_MS + HOUR_MS, 40, "day"),)))
    account.charge(70, at_ms=START_MS)

    account.advance(START_MS + DAY_MS)

    assert left_in(account) == [40]


# Holds


def test_a_hold_takes_like_a_charge_and_remembers_who_paid():
    account = account_of(grant(1, priority=0, left=30), grant(2))

    account.hold("a", 50, at_ms=START_MS)

    assert account.holds == {"a": [Payment(ONE, 30), Payment(TWO, 20)]}
    assert left_in(account) == [0, 80]
    assert account.returnable("a") == [(30, True), (20, True)]


@pytest.mark.parametrize(
    ("kept", "payments", "left"),
    [
        (0, [], [30, 100]),
        (10, [(ONE, 10)], [20, 100]),
        (30, [(ONE, 30)], [0, 100]),
        (45, [(ONE, 30), (TWO, 15)], [0, 85]),
        (50, [(ONE, 30), (TWO, 20)], [0, 80]),
        (99, [(ONE, 30), (TWO, 20)], [0, 80]),  # more than was held is not the hold's to pay
    ],
)
def test_what_a_hold_does_not_keep_goes_back_last_taken_first(
    kept: int, payments: list[tuple[UUID, int]], left: list[int]
):
    account = account_of(grant(1, priority=0, left=30), grant(2))
    account.hold("a", 50, at_ms=START_MS)

    found, moves = account.settle("a", kept)

    assert found == payments
    assert left_in(account) == left
    assert {move.kind for move in moves} <= {"returned"}
    assert [move.grant_id for move in moves] == [TWO, ONE][: len(moves)]
    assert account.holds == {}


def test_a_hold_on_overage_gives_the_overage_back():
    account = account_of(grant(left=30))
    account.hold("a", 50, at_ms=START_MS)
    assert account.net(at_ms=START_MS) == -20

    assert account.settle("a", 0) == (
        [],
        [Move("returned", None, 20, START_MS), Move("returned", ONE, 30, START_MS)],
    )
    assert account.net(at_ms=START_MS) == 30


def test_what_comes_back_pays_overage_of_usage_first():
    account = account_of(grant(left=30))
    account.hold("a", 30, at_ms=START_MS)
    account.charge(20, at_ms=START_MS)

    _, moves = account.settle("a", 0)

    assert moves == [Move("returned", ONE, 30, START_MS), Move("repaid", ONE, 20, START_MS)]
    assert account.net(at_ms=START_MS) == 10


def test_nothing_comes_back_to_a_grant_that_is_over():
    ends_ms = START_MS + DAY_MS
    account = account_of(grant(1, expires_at_ms=ends_ms), grant(2))
    account.hold("a", 150, at_ms=START_MS)
    assert account.valid_until_ms(at_ms=START_MS) == ends_ms  # although nothing is left of it

    account.advance(ends_ms)

    assert account.returnable("a") == [(100, False), (50, True)]
    assert account.settle("a", 0) == (
        [],
        [Move("returned", TWO, 50, ends_ms), Move("lapsed", ONE, 100, ends_ms)],
    )


def test_nothing_comes_back_to_a_grant_that_was_set_back_since():
    account = account_of(grant(every="day"))
    account.hold("a", 70, at_ms=START_MS)
    next_ms = START_MS + DAY_MS

    account.advance(next_ms)

    assert account.returnable("a") == [(70, False)]
    assert account.settle("a", 20) == ([(ONE, 20)], [Move("lapsed", ONE, 50, next_ms)])
    assert left_in(account) == [100]


@pytest.mark.parametrize(
    ("amount", "comes_back"),
    [
        (1_000, 70),
        (90, 70),
        (40, 40),  # 30 more were taken than there are now
        (20, 20),
        (0, 0),
    ],
)
def test_a_hold_gives_back_to_a_smaller_amount_as_if_it_had_not_been(amount: int, comes_back: int):
    never, account = (
        account_of(grant(every="month", changes_to=(Change(CHANGE_MS, amount, "month"),)))
        for _ in range(2)
    )
    account.hold("a", 70, at_ms=START_MS)
    for one in (never, account):
        one.advance(CHANGE_MS)
    told = account.returnable("a")
    before = account.net(at_ms=CHANGE_MS)

    account.settle("a", 0)

    assert left_in(account) == left_in(never) == [amount]
    assert sum(amount for amount, returns in told if returns) == left_in(account)[0] - before
    assert comes_back == sum(amount for amount, returns in told if returns)


def test_overage_of_a_hold_is_taken_over_by_the_grant_that_comes():
    begins_ms = START_MS + DAY_MS
    account = account_of(grant(1, left=10), grant(2, left=50, effective_at_ms=begins_ms))
    account.charge(15, at_ms=START_MS)
    account.hold("a", 20, at_ms=START_MS)
    account.hold("b", 20, at_ms=START_MS)

    moves = account.advance(begins_ms)

    assert moves == [
        Move("repaid", TWO, 5, begins_ms)
    ]  # of usage, the older debt, and no move of holds
    assert account.holds == {"a": [Payment(TWO, 20)], "b": [Payment(TWO, 20)]}
    assert account.net(at_ms=begins_ms) == 5
    account.settle("a", 0)
    assert account.net(at_ms=begins_ms) == 25


@pytest.mark.parametrize("keys", [("a", "b"), ("b", "a")])
def test_whose_overage_a_grant_takes_over_does_not_depend_on_the_order_of_reading(
    keys: tuple[str, str],
):
    begins_ms = START_MS + DAY_MS
    come = grant(left=25, effective_at_ms=begins_ms)
    account = Account([come], 40, at_ms=START_MS, holds={key: [Payment(None, 20)] for key in keys})

    account.advance(begins_ms)

    assert account.holds["a"] == [Payment(ONE, 20)]
    assert account.holds["b"] == [Payment(ONE, 5), Payment(None, 15)]


@given(
    st.lists(
        st.builds(Payment, st.none() | st.uuids(), st.integers(1, 2**53), st.booleans()), max_size=4
    )
)
def test_payments_come_back_from_their_rows(payments: list[Payment]):
    assert payments_of(json.loads(json.dumps(payment_rows(payments)))) == payments


# Refunds


def test_a_refund_goes_back_to_who_paid_last_first():
    account = account_of(grant(1, priority=0, left=30), grant(2))
    payments, _ = account.charge(50, at_ms=START_MS)

    moves = account.give_back(payments, 35, paid_at_ms=START_MS)

    assert moves == [Move("returned", TWO, 20, START_MS), Move("returned", ONE, 15, START_MS)]
    assert left_in(account) == [15, 100]


def test_a_refund_gives_nothing_to_a_grant_that_is_over():
    ends_ms = START_MS + DAY_MS
    account = account_of(grant(expires_at_ms=ends_ms))
    payments, _ = account.charge(50, at_ms=START_MS)
    account.advance(ends_ms)

    assert account.give_back(payments, 50, paid_at_ms=START_MS) == []
    assert left_in(account) == [50]


def test_a_refund_gives_nothing_to_a_grant_that_was_set_back_since():
    account = account_of(grant(every="day"))
    payments, _ = account.charge(50, at_ms=START_MS)
    next_ms = START_MS + DAY_MS
    account.advance(next_ms)
    again, _ = account.charge(20, at_ms=next_ms)

    assert account.give_back(payments, 50, paid_at_ms=START_MS) == []
    assert account.give_back(again, 50, paid_at_ms=next_ms) == [Move("returned", ONE, 20, next_ms)]


@pytest.mark.parametrize("every", ["day", "month"])
def test_a_change_of_the_amount_is_no_renewal_to_a_refund(every: str):
    account = account_of(grant(every="month", changes_to=(Change(CHANGE_MS, 90, every),)))
    payments, _ = account.charge(50, at_ms=START_MS)
    account.advance(CHANGE_MS)

    moves = account.give_back(payments, 50, paid_at_ms=START_MS)

    assert moves == [Move("returned", ONE, 50, CHANGE_MS)]
    assert left_in(account) == [90]


def test_a_refund_never_makes_a_recurring_grant_more_than_whole():
    account = account_of(grant(every="day"))
    account.charge(20, at_ms=START_MS)

    moves = account.give_back([(ONE, 50)], 50, paid_at_ms=START_MS)

    assert moves == [Move("returned", ONE, 20, START_MS)]


def test_a_refund_leaves_room_for_what_holds_give_back():
    account = account_of(grant(every="day"))
    account.hold("a", 30, at_ms=START_MS)
    account.charge(20, at_ms=START_MS)

    moves = account.give_back([(ONE, 50)], 50, paid_at_ms=START_MS)

    assert moves == [Move("returned", ONE, 20, START_MS)]
    assert account.settle("a", 0) == ([], [Move("returned", ONE, 30, START_MS)])
    assert left_in(account) == [100]


def test_a_refund_of_overage_reduces_what_is_still_open():
    account = account_of(grant(left=10))
    payments, rest = account.charge(50, at_ms=START_MS)

    moves = account.give_back([*payments, (None, rest)], 45, paid_at_ms=START_MS)

    assert moves == [Move("returned", None, 40, START_MS), Move("returned", ONE, 5, START_MS)]
    assert (account.overage, left_in(account)) == (0, [5])


def test_a_refund_of_overage_does_not_take_that_of_a_hold():
    account = account_of(grant(left=10))
    account.hold("a", 30, at_ms=START_MS)

    assert account.give_back([(None, 15)], 15, paid_at_ms=START_MS) == []
    assert account.settle("a", 0) == (
        [],
        [Move("returned", None, 20, START_MS), Move("returned", ONE, 10, START_MS)],
    )


# Voids


def test_a_void_takes_what_is_left_and_ends_the_grant():
    account = account_of(grant(1, priority=0), grant(2))
    account.charge(30, at_ms=START_MS)

    assert account.void(ONE, at_ms=START_MS + 5) == 70
    assert account.void(ONE, at_ms=START_MS + 6) == 0
    assert left_in(account) == [0, 100]
    assert account.grants()[0].voided_at_ms == START_MS + 5
    assert account.charge(30, at_ms=START_MS + 6) == ([(TWO, 30)], 0)


def test_a_void_of_a_grant_that_is_over_takes_nothing():
    account = account_of(grant(expires_at_ms=START_MS + 5))

    assert account.void(ONE, at_ms=START_MS + 5) == 0
    assert left_in(account) == [100]
    assert account.grants()[0].voided_at_ms is None


def test_a_grant_that_is_voided_before_it_begins_never_begins():
    account = account_of(grant(effective_at_ms=START_MS + DAY_MS, every="day"))
    assert account.void(ONE, at_ms=START_MS) == 100
    account.charge(10, at_ms=START_MS)

    assert account.valid_until_ms(at_ms=START_MS) is None
    assert account.advance(START_MS + 9 * DAY_MS) == []
    assert account.overage == 10


def test_a_void_of_an_unknown_grant_is_a_programmers_error():
    with pytest.raises(KeyError):
        account_of(grant()).void(TWO, at_ms=START_MS)


# Resets


RESET_MS = START_MS + DAY_MS


@pytest.mark.parametrize(
    ("bounds", "left", "rolled"),
    [
        ((0, 0), 70, 0),
        ((0, 50), 70, 50),
        ((0, 100), 70, 70),
        ((20, 50), 70, 50),
        ((20, 50), 10, 20),
        ((120, 150), 70, 120),  # the least can be more than the grant was of
        ((0, 50), 0, 0),
    ],
)
def test_an_active_grant_rolls_over_within_its_bounds(
    bounds: tuple[int, int], left: int, rolled: int
):
    account = account_of(grant(left=left, min_rollover=bounds[0], max_rollover=bounds[1]))

    moves = account.reset(at_ms=RESET_MS, preserve_overage=False)

    kind = "renewed" if rolled > left else "lapsed"
    assert moves == ([] if rolled == left else [Move(kind, ONE, abs(rolled - left), RESET_MS)])
    assert left_in(account) == [rolled]


@pytest.mark.parametrize(
    "fields",
    [
        {"effective_at_ms": RESET_MS},
        {"effective_at_ms": RESET_MS + 1},
        {"expires_at_ms": RESET_MS},
        {"expires_at_ms": RESET_MS - 1},
        {"voided_at_ms": RESET_MS},
    ],
)
def test_a_grant_that_is_not_active_before_and_at_a_reset_does_not_roll(fields: dict[str, int]):
    account = account_of(grant(left=70, min_rollover=90, max_rollover=90, **fields))

    assert account.reset(at_ms=RESET_MS, preserve_overage=False) == []
    assert left_in(account) == [70]


def test_a_reset_drops_overage():
    account = account_of(grant(left=0, min_rollover=30, max_rollover=30), overage=20)

    moves = account.reset(at_ms=RESET_MS, preserve_overage=False)

    assert moves == [Move("renewed", ONE, 30, RESET_MS), Move("forgiven", None, 20, RESET_MS)]
    assert account.net(at_ms=RESET_MS) == 30


def test_overage_that_is_kept_burns_from_what_rolled_before_what_begins_at_that_instant():
    account = account_of(
        grant(1, left=0, min_rollover=30, max_rollover=30),
        grant(2, priority=0, effective_at_ms=RESET_MS),
        overage=50,
    )

    moves = account.reset(at_ms=RESET_MS, preserve_overage=True)

    assert moves == [
        Move("renewed", ONE, 30, RESET_MS),
        Move("repaid", ONE, 30, RESET_MS),
        Move("repaid", TWO, 20, RESET_MS),
    ]
    assert left_in(account) == [0, 80]


def test_overage_that_is_kept_does_not_burn_from_a_grant_that_ends_at_that_instant():
    account = account_of(
        grant(left=0, min_rollover=30, max_rollover=30, expires_at_ms=RESET_MS), overage=20
    )

    assert account.reset(at_ms=RESET_MS, preserve_overage=True) == []
    assert account.net(at_ms=RESET_MS) == -20


def test_a_recurrence_at_the_instant_of_a_reset_comes_after_it():
    account = account_of(grant(every="day", left=60))

    moves = account.reset(at_ms=RESET_MS, preserve_overage=False)

    assert moves == [Move("lapsed", ONE, 60, RESET_MS), Move("renewed", ONE, 100, RESET_MS)]
    assert left_in(account) == [100]


def test_a_reset_at_an_earlier_instant_counts_as_now():
    account = account_of(grant(1, left=70), grant(2, effective_at_ms=START_MS + HOUR_MS), overage=0)
    account.advance(RESET_MS)

    moves = account.reset(at_ms=START_MS, preserve_overage=False)

    assert moves == [Move("lapsed", ONE, 70, RESET_MS), Move("lapsed", TWO, 100, RESET_MS)]


def test_overage_of_a_hold_that_a_reset_dropped_does_not_come_back():
    account = account_of(grant(left=0, min_rollover=30, max_rollover=30))
    account.hold("a", 20, at_ms=START_MS)

    account.reset(at_ms=RESET_MS, preserve_overage=False)

    assert account.returnable("a") == [(20, False)]
    assert account.settle("a", 5) == ([(None, 5)], [Move("lapsed", None, 15, RESET_MS)])
    assert account.net(at_ms=RESET_MS) == 30


@pytest.mark.parametrize("between", [0, 20, 50])
def test_use_beyond_a_smaller_amount_is_not_forgotten_when_it_grows_again(between: int) -> None:
    grant = Grant(
        id=UUID(int=1), amount=100, left=100, effective_at_ms=0, created_at_ms=0, every="month"
    )
    account = Account([grant])
    account.charge(90, at_ms=10)
    for at_ms, amount in ((20, between), (30, 100)):
        (now,) = account.grants()
        account = Account([replace(now, changes_to=(Change(at_ms, amount, "month"),))])
        account.advance(at_ms)

    assert account.net(at_ms=30) == 10
    month_later_ms = 32 * 86_400_000
    account.advance(month_later_ms)
    assert account.net(at_ms=month_later_ms) == 100


def test_a_refund_makes_up_for_use_beyond_a_smaller_amount_first() -> None:
    grant = Grant(
        id=UUID(int=1), amount=100, left=100, effective_at_ms=0, created_at_ms=0, every="month"
    )
    account = Account([grant])
    account.charge(90, at_ms=10)
    (now,) = account.grants()
    account = Account([replace(now, changes_to=(Change(20, 30, "month"),))])
    account.advance(20)

    moves = account.give_back([(grant.id, 90)], 70, paid_at_ms=10)

    assert [move.amount for move in moves] == [10]
    assert account.net(at_ms=20) == 10
