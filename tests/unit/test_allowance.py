from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quota.account import Account
from quota.allowance import ALLOWANCE_NAME, allowance_grant, allowance_id
from quota.burndown import Grant
from quota.period import RENEWALS, renewal_at
from quota.rules import Allowance, Tier
from quota.values import instant_ms

USER, OTHER = UUID(int=1), UUID(int=2)
ANCHOR_MS = instant_ms(datetime(2025, 1, 31, 10, tzinfo=UTC))
NOW_MS = instant_ms(datetime(2025, 3, 10, tzinfo=UTC))
APPLIED_MS = instant_ms(datetime(2025, 3, 5, tzinfo=UTC))
DAY_MS = 86_400_000

FREE = Tier("free", {}, allowance=Allowance(100, "month"))
PRO = Tier("pro", {}, allowance=Allowance(1_000, "month"))
DAILY = Tier("daily", {}, allowance=Allowance(100, "day"))
BARE = Tier("bare", {})


def allowance(
    tier: Tier | None, stored: Grant | None = None, *, at_ms: int = NOW_MS, user: UUID = USER
) -> Grant | None:
    return allowance_grant(
        user, tier, stored, anchor_ms=ANCHOR_MS, changed_at_ms=APPLIED_MS, at_ms=at_ms
    )


def fresh(tier: Tier, *, at_ms: int = NOW_MS) -> Grant:
    grant = allowance(tier, at_ms=at_ms)
    assert grant is not None
    return grant


def moved(grant: Grant | None, *, at_ms: int) -> Grant:
    """The allowance as an account of it alone has it at *at_ms*."""
    assert grant is not None
    account = Account([grant], at_ms=grant.renewed_at_ms or 0)
    account.advance(at_ms)
    return account.grants()[0]


def test_a_fresh_allowance_is_whole_and_of_the_renewal_that_runs():
    grant = fresh(FREE)

    start_ms = instant_ms(datetime(2025, 2, 28, 10, tzinfo=UTC))  # the anchor's day, clamped
    assert (grant.amount, grant.left, grant.every) == (100, 100, "month")
    assert (grant.effective_at_ms, grant.renewed_at_ms) == (start_ms, start_ms)
    assert (grant.anchor_ms, grant.name, grant.expires_at_ms) == (ANCHOR_MS, ALLOWANCE_NAME, None)
    assert grant.changes_to is None


def test_a_tier_without_credits_has_no_allowance():
    assert allowance(BARE) is None
    assert allowance(None) is None


def test_the_allowance_of_a_user_is_one_grant_whatever_the_tier():
    assert fresh(FREE).id == fresh(PRO).id == allowance_id(USER)
    assert allowance_id(USER) != allowance_id(OTHER)


@given(
    tier=st.sampled_from([FREE, PRO, DAILY, Tier("w", {}, allowance=Allowance(7, "week"))]),
    instants=st.tuples(st.integers(0, 2_000), st.integers(0, 2_000)).map(sorted),
)
def test_it_does_not_matter_when_an_untouched_allowance_is_made(tier: Tier, instants: list[int]):
    early_ms, late_ms = (ANCHOR_MS + hours * 3_600_000 for hours in instants)

    early, late = fresh(tier, at_ms=early_ms), fresh(tier, at_ms=late_ms)

    walked = moved(early, at_ms=late_ms)
    assert replace(walked, effective_at_ms=late.effective_at_ms) == late


def test_an_allowance_that_is_as_the_tier_says_does_not_change():
    stored = replace(fresh(FREE), left=20)

    assert allowance(FREE, stored) == stored


def test_an_allowance_from_the_database_gets_the_users_anchor_and_its_name():
    stored = replace(fresh(FREE), left=20, name=None, anchor_ms=None)

    assert allowance(FREE, stored) == replace(fresh(FREE), left=20)


@pytest.mark.parametrize(
    ("tier", "left", "renewed"),
    [
        (PRO, 920, 1_000),  # of 100 with 80 used
        (Tier("less", {}, allowance=Allowance(90, "month")), 10, 90),
        (Tier("least", {}, allowance=Allowance(50, "month")), 0, 50),
        (BARE, 0, 0),
        (None, 0, 0),
    ],
)
def test_a_change_of_tier_keeps_what_was_used(tier: Tier | None, left: int, renewed: int):
    stored = replace(fresh(FREE), left=20)

    grant = allowance(tier, stored)

    assert grant is not None
    assert (grant.amount, grant.left) == (100, 20)  # until it is walked over the change
    assert moved(grant, at_ms=APPLIED_MS - 1).left == 20
    assert moved(grant, at_ms=APPLIED_MS).left == left
    next_ms = renewal_at("month", ANCHOR_MS, NOW_MS).end_ms
    assert next_ms is not None
    assert moved(grant, at_ms=next_ms).left == renewed


def test_a_tier_with_credits_after_one_without_gives_them():
    bare = moved(allowance(BARE, fresh(FREE)), at_ms=APPLIED_MS)
    assert (bare.amount, bare.left) == (0, 0)

    again = moved(allowance(FREE, bare), at_ms=APPLIED_MS)

    assert (again.amount, again.left) == (100, 100)


def test_another_recurrence_keeps_what_was_used_until_it_recurs():
    stored = replace(fresh(FREE), left=20)

    grant = allowance(DAILY, stored)

    assert moved(grant, at_ms=APPLIED_MS).left == 20
    assert moved(grant, at_ms=APPLIED_MS + DAY_MS).left == 100
    assert moved(grant, at_ms=APPLIED_MS + DAY_MS).every == "day"


def test_rules_that_are_older_than_the_allowance_change_it_from_its_start():
    stored = replace(fresh(FREE), effective_at_ms=APPLIED_MS + 7, renewed_at_ms=APPLIED_MS + 7)

    grant = allowance(PRO, stored)

    assert grant is not None
    assert grant.changes_to == (APPLIED_MS + 7, 1_000, "month")


@pytest.mark.parametrize("every", RENEWALS)
def test_an_allowance_recurs_on_the_anchor(every: str):
    grant = fresh(Tier("t", {}, allowance=Allowance(5, every)))
    account = Account([replace(grant, left=1)], at_ms=NOW_MS)
    account.advance(NOW_MS)

    window = renewal_at(every, ANCHOR_MS, NOW_MS)
    assert grant.renewed_at_ms == window.start_ms
    assert account.valid_until_ms(at_ms=NOW_MS) == window.end_ms
