from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from inspect import signature
from typing import Any

import pytest

from quota import (
    InvalidValueError,
    KeyConflictError,
    Quota,
    UnknownGrantError,
    UnknownHoldError,
    UnknownKeyError,
    UnknownUserError,
)
from quota.testing import InMemoryQuota

NOON = datetime(2025, 1, 1, 12, tzinfo=UTC)
TIERS: dict[str, Any] = {
    "default_tier": "free",
    "features": {"image": {"price": "0.5"}},
    "tiers": {
        "free": {
            "limits": {
                "event": {"max": 3, "per": "day"},
                "image": {"max": "unlimited", "per": "month"},
            }
        },
        "pro": {"overdraft": True, "limits": {"*": {"max": 1000, "per": "month"}}},
    },
}


@pytest.fixture
def quota(in_memory_quota: Callable[..., InMemoryQuota]) -> InMemoryQuota:
    return in_memory_quota(TIERS, clock=lambda: NOON)


def done(verb: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(verb)


def test_it_is_used_as_a_quota_is(quota: InMemoryQuota):
    async def application() -> list[bool]:
        async with quota:
            return [bool(await quota.consume("user", "event")) for _ in range(4)]

    assert done(application()) == [True, True, True, False]


def test_time_is_the_clock_of_the_test(in_memory_quota: Callable[..., InMemoryQuota]):
    now = NOON
    quota = in_memory_quota(TIERS, clock=lambda: now)
    assert done(quota.consume("user", "event", 3))
    assert not done(quota.consume("user", "event"))

    now += timedelta(days=1)

    assert done(quota.consume("user", "event"))


def test_the_instant_of_a_call_goes_before_the_clock(quota: InMemoryQuota):
    assert done(quota.consume("user", "event", 3))

    decision = done(quota.consume("user", "event", now=NOON + timedelta(days=1)))

    assert decision.now_ms == 1_735_819_200_000
    assert decision


def test_without_a_clock_time_is_the_machines(in_memory_quota: Callable[..., InMemoryQuota]):
    decision = done(in_memory_quota(TIERS).consume("user", "event"))

    assert abs(decision.now_ms - datetime.now(UTC).timestamp() * 1000) < 60_000


def test_a_repeat_of_a_key_counts_once(quota: InMemoryQuota):
    first = done(quota.consume("user", "event", key="k"))
    again = done(quota.consume("user", "event", key="k"))

    assert (first.used, again.used) == (1, 1)
    assert (first.replayed, again.replayed) == (False, True)
    with pytest.raises(KeyConflictError):
        done(quota.consume("user", "event", 2, key="k"))
    assert done(quota.consume("other", "event", 2, key="k")), "keys are each user's own"


def test_a_denied_call_does_not_use_up_its_key(quota: InMemoryQuota):
    assert not done(quota.consume("user", "event", 4, key="k"))

    assert done(quota.consume("user", "event", 3, key="k"))


def test_a_block_releases_what_it_does_not_commit(quota: InMemoryQuota):
    async def application() -> None:
        async with quota.reserve("user", "event", 3) as hold:
            assert hold
            assert not await quota.check("user", "event")
            raise LookupError

    with pytest.raises(LookupError):
        done(application())

    assert done(quota.check("user", "event", 3))


def test_a_hold_commits_what_was_used(quota: InMemoryQuota):
    async def application() -> Any:
        await quota.grant("user", "10")
        async with quota.reserve("user", "image", 8) as hold:
            return await hold.commit(3)

    settlement = done(application())

    assert (settlement.status, settlement.amount, str(settlement.cost)) == ("committed", 3, "1.5")
    assert str(done(quota.balance("user")).credits) == "8.5"


def test_many_are_answered_in_their_places(quota: InMemoryQuota):
    calls: list[dict[str, Any]] = [
        {"user_id": "user", "feature": "event", "key": "k"},
        {"user_id": "user", "feature": "Event"},
        {"user_id": "user", "feature": "event", "key": "k", "amount": 2},
        {"user_id": "user", "feature": "event", "colour": "red"},
        {"user_id": "user", "feature": "event", "amount": 9},
    ]

    answers = done(quota.consume_many(calls))

    assert [answer.code for answer in answers] == [
        "ok", "invalid_value", "key_conflict", "invalid_value", "limit_exceeded",
    ]  # fmt: skip


def test_a_record_of_several_is_counted_whole_or_not_at_all(quota: InMemoryQuota):
    receipt = done(quota.record("user", {"event": 7, "other": 2}, key="k"))
    assert (receipt.recorded, receipt.replayed) == (2, False)
    assert done(quota.record("user", {"other": 2, "event": 7}, key="k")).replayed

    with pytest.raises(InvalidValueError):
        done(quota.record("user", {"other": 1, "event": 2**53 - 1}))

    assert done(quota.balance("user")).limits["event/day"].used == 7


def test_users_are_made_on_first_use_unless_they_are_not(
    in_memory_quota: Callable[..., InMemoryQuota],
):
    quota = in_memory_quota(TIERS, auto_provision=False)
    assert done(quota.consume("user", "event")).code == "unknown_user"
    with pytest.raises(UnknownUserError):
        done(quota.record("user", "event"))

    done(quota.set_user("user"))

    assert done(quota.consume("user", "event"))


def test_an_amount_beside_several_features_is_refused(quota: InMemoryQuota):
    with pytest.raises(InvalidValueError) as refused:
        done(quota.record("user", {"event": 1}, 7))

    assert refused.value.field == "amount"


def test_a_hold_ends_with_0_units_or_more(quota: InMemoryQuota):
    async def commit_less_than_nothing() -> None:
        await quota.reserve("user", "event", 1, key="hold")
        await quota.commit("user", "hold", -1)

    with pytest.raises(InvalidValueError, match="an integer from 0 to"):
        done(commit_less_than_nothing())


@pytest.mark.parametrize("name", sorted(name for name in vars(Quota) if not name.startswith("_")))
def test_every_verb_of_a_quota_has_the_same_arguments_in_memory(name: str):
    if name == "from_url":
        return  # there is none
    real, double = getattr(Quota, name), getattr(InMemoryQuota, name)

    assert type(real) is type(double)
    if not isinstance(real, property):
        assert signature(real) == signature(double)


def test_other_tiers_bind_the_next_decision(quota: InMemoryQuota):
    assert done(quota.consume("user", "event", 2))
    more = {
        **TIERS,
        "tiers": {**TIERS["tiers"], "free": {"limits": {"event": {"max": 9, "per": "month"}}}},
    }

    done(quota.apply_tiers(more))

    assert done(quota.check("user", "event")).remaining == 7
    with pytest.raises(InvalidValueError) as refused:
        done(quota.apply_tiers({"default_tier": "pro", "tiers": {"pro": {}}}))
    assert refused.value.field == "tiers.free"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"tier": "gold"}, "tier"),
        ({"timezone": "Mars/Olympus"}, "timezone"),
        ({"anchor": "0001-01-01T00:00:00Z"}, "anchor"),
        ({"anchor": "1969-12-31T23:59:59Z"}, "anchor"),
        ({"anchor": "2200-01-01T00:00:00Z"}, "anchor"),
        ({"cycle_months": 0}, "cycle_months"),
    ],
)
def test_a_user_is_refused_whole(quota: InMemoryQuota, changes: dict[str, Any], field: str):
    with pytest.raises(InvalidValueError) as refused:
        done(quota.set_user("user", **changes))

    assert refused.value.field == field


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"amount": "-1"}, "amount"),
        ({"amount": "0"}, "amount"),
        ({"amount": "1", "kind": "gift"}, "kind"),
        ({"amount": "1", "priority": -1}, "priority"),
        ({"amount": "1", "every": "hour"}, "every"),
        ({"amount": "1", "expires_at": NOON}, "expires_at"),
        ({"amount": "1", "min_rollover": "2", "max_rollover": "1"}, "min_rollover"),
        ({"amount": "1", "id": ""}, "id"),
    ],
)
def test_a_grant_is_refused_whole(quota: InMemoryQuota, given: dict[str, Any], field: str):
    with pytest.raises(InvalidValueError) as refused:
        done(quota.grant("user", **given))

    assert refused.value.field == field
    with pytest.raises(UnknownUserError):
        done(quota.balance("user"))


def test_a_grant_of_a_known_id_is_given_once(quota: InMemoryQuota):
    first = done(quota.grant("user", "5", id="g"))

    assert done(quota.grant("user", "5", id="g")) == first
    with pytest.raises(InvalidValueError):
        done(quota.grant("user", "6", id="g"))
    assert str(done(quota.balance("user")).credits) == "5"


def test_what_is_not_there_is_said_so(quota: InMemoryQuota):
    done(quota.set_user("user"))

    with pytest.raises(UnknownHoldError):
        done(quota.commit("user", "hold"))
    with pytest.raises(UnknownKeyError):
        done(quota.refund("key"))
    with pytest.raises(UnknownGrantError):
        done(quota.void("user", "grant"))
    with pytest.raises(UnknownUserError):
        done(quota.reset("stranger"))


def test_a_key_of_several_users_needs_the_user(quota: InMemoryQuota):
    for user in ("one", "two"):
        done(quota.consume(user, "event", key="k"))

    with pytest.raises(InvalidValueError) as refused:
        done(quota.refund("k"))

    assert refused.value.field == "user_id"
    assert done(quota.refund("k", user_id="two")).amount == 1


def test_a_refund_with_an_id_is_given_once(quota: InMemoryQuota):
    done(quota.consume("user", "event", 3, key="k"))

    first = done(quota.refund("k", 1, refund_id="r"))
    again = done(quota.refund("k", 1, refund_id="r"))

    assert (first.amount, again.amount) == (1, 1)
    assert done(quota.check("user", "event")).remaining == 1


@pytest.mark.parametrize("ttl", [0, 86_401, 1.5, True, None])
def test_a_hold_lasts_a_second_to_a_day(quota: InMemoryQuota, ttl: object):
    async def application() -> None:
        await quota.reserve("user", "event", ttl=ttl)

    with pytest.raises(InvalidValueError) as refused:
        done(application())

    assert refused.value.field == "ttl"


def test_it_explains(quota: InMemoryQuota):
    done(quota.grant("user", "2", id="g"))
    done(quota.consume("user", "image", 3))

    found = done(quota.explain("user", "image"))

    assert (found.decision.code, str(found.decision.credits)) == ("ok", "0.5")
    assert [one.grant.name for one in found.payers] == ["g"]
    assert found.entries is found.compared is None
