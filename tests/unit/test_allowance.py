from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quota.account import Account
from quota.allowance import (
    ALLOWANCE_NAME,
    COUNTS_AFTER_MS,
    allowance_changes,
    allowance_grant,
    allowance_id,
    moved_allowance,
)
from quota.burndown import Change, Grant
from quota.period import RENEWALS, renewal_at
from quota.rules import Allowance, AllowanceChanges
from quota.values import instant_ms

USER, OTHER = UUID(int=1), UUID(int=2)
ANCHOR_MS = instant_ms(datetime(2025, 1, 31, 10, tzinfo=UTC))
NOW_MS = instant_ms(datetime(2025, 3, 10, tzinfo=UTC))
APPLIED_MS = instant_ms(datetime(2025, 3, 5, tzinfo=UTC))
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS

FREE = Allowance(100, "month")
PRO = Allowance(1_000, "month")
DAILY = Allowance(100, "day")


def allowance(
    *changes: tuple[int, Allowance | None], stored: Grant | None = None, at_ms: int = NOW_MS
) -> Grant | None:
    return allowance_grant(USER, changes, stored, anchor_ms=ANCHOR_MS, at_ms=at_ms)


def fresh(*changes: tuple[int, Allowance | None], at_ms: int = NOW_MS) -> Grant:
    grant = allowance(*changes, at_ms=at_ms)
    assert grant is not None
    return grant


def changed(stored: Grant, to: Allowance | None) -> Grant:
    """The allowance FREE that is stored, once the tier's is another one."""
    grant = allowance((0, FREE), (APPLIED_MS, to), stored=stored)
    assert grant is not None
    return grant


def moved(grant: Grant | None, *, at_ms: int) -> Grant:
    """The allowance as an account of it alone has it at *at_ms*."""
    assert grant is not None
    account = Account([grant], at_ms=grant.renewed_at_ms or 0)
    account.advance(at_ms)
    return account.grants()[0]


# The changes of a tier


def test_a_change_counts_when_everybody_knows_of_it():
    versions = [(1_000, "t", FREE), (5_000, "t", PRO), (9_000, "t", None)]

    found = allowance_changes(versions)

    later = ((5_000 + COUNTS_AFTER_MS, PRO), (9_000 + COUNTS_AFTER_MS, None))
    assert found == {"t": ((0, FREE), *later)}


def test_a_version_that_leaves_an_allowance_as_it_was_is_no_change():
    versions = [(1, "t", FREE), (1, "u", None), (2, "t", FREE), (3, "t", PRO), (4, "u", None)]

    assert allowance_changes(versions) == {"t": ((0, FREE), (3 + COUNTS_AFTER_MS, PRO))}


def test_a_version_that_was_applied_when_the_clock_had_been_set_back_counts():
    versions = [(10, "t", FREE), (30, "t", PRO), (20, "t", DAILY)]

    assert allowance_changes(versions) == {"t": ((0, FREE), (20 + COUNTS_AFTER_MS, DAILY))}


# A fresh one


def test_a_fresh_allowance_is_whole_and_of_the_renewal_that_runs():
    grant = fresh((0, FREE))

    start_ms = instant_ms(datetime(2025, 2, 28, 10, tzinfo=UTC))  # the anchor's day, clamped
    assert (grant.amount, grant.left, grant.every) == (100, 100, "month")
    assert (grant.effective_at_ms, grant.renewed_at_ms) == (start_ms, start_ms)
    assert (grant.anchor_ms, grant.name, grant.expires_at_ms) == (ANCHOR_MS, ALLOWANCE_NAME, None)
    assert (grant.changed_at_ms, grant.changes_to) == (None, ())


def test_a_tier_without_credits_has_no_allowance():
    assert allowance() is None
    assert allowance((0, None)) is None
    assert allowance((0, FREE), (APPLIED_MS, None)) is None


def test_the_allowance_of_a_user_is_one_grant_whatever_the_tier():
    assert fresh((0, FREE)).id == fresh((0, PRO)).id == allowance_id(USER)
    assert allowance_id(USER) != allowance_id(OTHER)


def test_a_fresh_allowance_is_of_its_instant_and_knows_what_comes():
    to_come = (Change(APPLIED_MS, 1_000, "month"), Change(APPLIED_MS + 5, 0, "month"))
    changes = ((0, FREE), (APPLIED_MS, PRO), (APPLIED_MS + 5, None))

    before, between = (fresh(*changes, at_ms=at_ms) for at_ms in (APPLIED_MS - 1, APPLIED_MS))

    assert (before.amount, before.changed_at_ms, before.changes_to) == (100, None, to_come)
    assert (between.amount, between.changed_at_ms) == (1_000, APPLIED_MS)
    assert between.changes_to == to_come[1:]


@pytest.mark.parametrize("at_ms", [ANCHOR_MS, APPLIED_MS - 1, APPLIED_MS, APPLIED_MS + DAY_MS])
def test_an_allowance_that_comes_with_a_change_begins_with_it(at_ms: int):
    grant = fresh((0, None), (APPLIED_MS, FREE), (APPLIED_MS + 2 * DAY_MS, PRO), at_ms=at_ms)

    assert (grant.effective_at_ms, grant.renewed_at_ms) == (APPLIED_MS, APPLIED_MS)
    assert (grant.amount, grant.left, grant.changed_at_ms) == (100, 100, APPLIED_MS)
    assert grant.changes_to == (Change(APPLIED_MS + 2 * DAY_MS, 1_000, "month"),)


amounts = st.none() | st.builds(Allowance, st.integers(1, 90), st.sampled_from(RENEWALS))


@given(
    later=st.lists(st.tuples(st.integers(1, 2_000), amounts), max_size=3),
    first=amounts,
    instants=st.tuples(st.integers(0, 2_000), st.integers(0, 2_000)).map(sorted),
)
def test_it_does_not_matter_when_an_untouched_allowance_is_made(
    later: list[tuple[int, Allowance | None]], first: Allowance | None, instants: list[int]
):
    early_ms, late_ms = (ANCHOR_MS + hours * HOUR_MS for hours in instants)
    changes = [
        (0, first),
        *sorted((ANCHOR_MS + at * HOUR_MS, to) for at, to in dict(later).items()),
    ]

    early, late = (allowance(*changes, at_ms=at_ms) for at_ms in (early_ms, late_ms))

    if early is not None and late is not None:
        walked = moved(early, at_ms=late_ms)
        if late.effective_at_ms <= late_ms:
            assert (walked.amount, walked.left, walked.every) == (
                late.amount,
                late.left,
                late.every,
            )
        assert walked.changes_to == late.changes_to or late.effective_at_ms > late_ms
        assert moved(early, at_ms=2 * NOW_MS).left == moved(late, at_ms=2 * NOW_MS).left


# One that has a row


def test_an_allowance_that_is_as_the_tier_says_does_not_change():
    stored = replace(fresh((0, FREE)), left=20)

    assert allowance((0, FREE), stored=stored) == stored


def test_an_allowance_from_the_database_gets_the_users_anchor_and_its_name():
    stored = replace(fresh((0, FREE)), left=20, name=None, anchor_ms=None)

    assert allowance((0, FREE), stored=stored) == replace(fresh((0, FREE)), left=20)


@pytest.mark.parametrize(
    ("to", "left", "renewed"),
    [
        (PRO, 920, 1_000),  # of 100 with 80 used
        (Allowance(90, "month"), 10, 90),
        (Allowance(50, "month"), 0, 50),
        (None, 0, 0),
    ],
)
def test_a_change_keeps_what_was_used(to: Allowance | None, left: int, renewed: int):
    stored = replace(fresh((0, FREE)), left=20)

    grant = changed(stored, to)

    assert (grant.amount, grant.left) == (100, 20)  # until it is walked over the change
    assert moved(grant, at_ms=APPLIED_MS - 1).left == 20
    assert moved(grant, at_ms=APPLIED_MS).left == left
    next_ms = renewal_at("month", ANCHOR_MS, NOW_MS).end_ms
    assert next_ms is not None
    assert moved(grant, at_ms=next_ms).left == renewed
    other = moved_allowance(((0, to),), stored, anchor_ms=ANCHOR_MS, at_ms=APPLIED_MS)
    assert moved(other, at_ms=NOW_MS) == moved(grant, at_ms=NOW_MS)  # as a change of tier does


def test_a_change_that_a_row_took_is_not_taken_again():
    changes: AllowanceChanges = ((0, FREE), (APPLIED_MS, Allowance(20, "month")), (NOW_MS, FREE))
    stored = replace(fresh((0, FREE)), left=40)
    grant = allowance(*changes, stored=stored)
    assert grant is not None
    assert grant.changes_to == (Change(APPLIED_MS, 20, "month"), Change(NOW_MS, 100, "month"))

    taken = moved(grant, at_ms=APPLIED_MS)
    again = allowance(*changes, stored=replace(taken, changes_to=()))

    assert (taken.left, taken.overused, taken.changed_at_ms) == (0, 40, APPLIED_MS)
    assert again == taken
    assert moved(again, at_ms=NOW_MS).left == 40


def test_a_row_of_a_change_that_counts_no_more_gets_the_allowance_in_force():
    stored = replace(fresh((0, PRO)), left=920, changed_at_ms=NOW_MS)

    grant = allowance((0, PRO), (APPLIED_MS, FREE), stored=stored)

    assert grant is not None
    assert grant.changes_to == (Change(NOW_MS, 100, "month"),)


def test_an_allowance_after_none_is_given_again():
    bare = moved(changed(fresh((0, FREE)), None), at_ms=APPLIED_MS)
    assert (bare.amount, bare.left) == (0, 0)

    changes: AllowanceChanges = ((0, FREE), (APPLIED_MS, None), (APPLIED_MS + 1, FREE))
    again = moved(allowance(*changes, stored=bare), at_ms=APPLIED_MS + 1)

    assert (again.amount, again.left) == (100, 100)


def test_another_recurrence_keeps_what_was_used_until_it_recurs():
    stored = replace(fresh((0, FREE)), left=20)

    grant = changed(stored, DAILY)

    assert moved(grant, at_ms=APPLIED_MS).left == 20
    assert moved(grant, at_ms=APPLIED_MS + DAY_MS).left == 100
    assert moved(grant, at_ms=APPLIED_MS + DAY_MS).every == "day"


def test_a_change_of_before_the_allowance_began_counts_from_there():
    stored = replace(fresh((0, FREE)), effective_at_ms=APPLIED_MS + 7, renewed_at_ms=APPLIED_MS + 7)

    assert changed(stored, PRO).changes_to == (Change(APPLIED_MS + 7, 1_000, "month"),)


# Another tier, another anchor


def test_a_tier_whose_allowance_changes_within_a_moment_is_known_to_do_so():
    stored = replace(fresh((0, FREE)), left=20)
    changes: AllowanceChanges = ((0, PRO), (NOW_MS + 5, DAILY))

    grant = moved_allowance(changes, stored, anchor_ms=ANCHOR_MS, at_ms=NOW_MS)

    assert grant.changes_to == (
        Change(NOW_MS, 1_000, "month"),
        Change(NOW_MS + 5, 100, "day"),
    )
    left = moved(grant, at_ms=NOW_MS)
    assert allowance(*changes, stored=replace(left, changes_to=())) == left


def test_a_tier_with_the_same_allowance_changes_nothing_and_its_past_is_not_made_up_for():
    stored = replace(fresh((0, FREE)), left=20)
    changes: AllowanceChanges = ((0, PRO), (APPLIED_MS, FREE))

    grant = moved_allowance(changes, stored, anchor_ms=ANCHOR_MS, at_ms=NOW_MS)

    assert moved(grant, at_ms=NOW_MS).left == 20
    assert allowance(*changes, stored=grant) == grant


@pytest.mark.parametrize("hours", [1, 5 * 24])
def test_an_anchor_that_moves_is_no_renewal(hours: int):
    stored = replace(fresh((0, DAILY)), left=20)
    anchor_ms = NOW_MS - hours * HOUR_MS - 5

    grant = moved_allowance(((0, DAILY),), stored, anchor_ms=anchor_ms, at_ms=NOW_MS)

    assert moved(grant, at_ms=NOW_MS).left == 20
    next_ms = renewal_at("day", anchor_ms, NOW_MS).end_ms
    assert next_ms is not None
    assert moved(grant, at_ms=next_ms - 1).left == 20
    assert moved(grant, at_ms=next_ms).left == 100


@pytest.mark.parametrize("every", RENEWALS)
def test_an_allowance_recurs_on_the_anchor(every: str):
    grant = fresh((0, Allowance(5, every)))
    account = Account([replace(grant, left=1)], at_ms=NOW_MS)
    account.advance(NOW_MS)

    window = renewal_at(every, ANCHOR_MS, NOW_MS)
    assert grant.renewed_at_ms == window.start_ms
    assert account.valid_until_ms(at_ms=NOW_MS) == window.end_ms
