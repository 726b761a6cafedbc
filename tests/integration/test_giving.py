"""A grant that is given to a user in use pays for nothing that was admitted before it was given."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from models import CreditGrant
from quota.errors import InvalidValueError, QuotaUnavailableError
from quota.rules import Rules
from quota.testing import InMemoryQuota
from quota.values import MICRO, parse_user_id
from service import giving
from service.accounts import store_account
from service.changes import Stores
from service.giving import give_grant
from service.still import standing_still
from service.tiers import stored_rules
from service.verify import Verifier
from worker.deps import Deps

USER = parse_user_id("user-1")
START = datetime(2025, 3, 1, tzinfo=UTC)
TIERS = {
    "default_tier": "paid",
    "features": {"image": {"price": "1"}},
    "tiers": {
        "paid": {
            "overdraft": True,
            "credits": {"amount": "20", "every": "day"},
            "limits": {"*": {"max": "unlimited", "per": "month"}},
        },
        "none": {"limits": {"*": {"max": "unlimited", "per": "month"}}},
    },
}


def hours(number: float) -> datetime:
    return START + timedelta(hours=number)


def stores(deps: Deps) -> Stores:
    async def settle() -> None:
        await deps.drain.run(seconds_max=5)

    return Stores(deps.database, deps.redis, deps.keys, settle=settle, roll=deps.quota.roll)


async def give(deps: Deps, amount: int, *, at: datetime, **how: Any) -> CreditGrant:
    rules = await stored_rules(deps.database)
    assert isinstance(rules, Rules)
    return await give_grant(
        stores(deps), USER, rules, at=at, amount_micro=amount * MICRO, name="g", **how
    )


async def credits_at(quota: Any, at: datetime) -> tuple[int, int]:
    balance = await quota.balance("user-1", now=at)
    return balance.credits, balance.overage


async def test_a_grant_of_the_past_does_not_pay_for_what_waits_in_the_log(
    deps: Deps, apply_tiers: Any
):
    await apply_tiers(deps, TIERS)
    assert await deps.quota.consume("user-1", "image", 20, now=hours(1))

    await give(deps, 10, at=hours(3), effective_at=hours(0), expires_at=hours(2))

    assert await credits_at(deps.quota, hours(4)) == (0, 0)
    assert await credits_at(deps.quota, hours(25)) == (20, 0)


async def test_a_grant_of_the_past_does_not_pay_overage_that_others_paid_since(
    deps: Deps, apply_tiers: Any
):
    await apply_tiers(deps, TIERS)
    memory = InMemoryQuota(TIERS)
    await memory.set_user("user-1", anchor=START, now=START)
    await deps.quota.record("user-1", "nothing", 1, now=START)
    quotas: list[Any] = [deps.quota, memory]
    for quota in quotas:
        await quota.consume("user-1", "image", 30, now=hours(1))

    # The allowance of the second day has paid the overage of the first by now.
    times: dict[str, Any] = {"effective_at": hours(2), "expires_at": hours(3)}
    rules = await stored_rules(deps.database)
    assert rules is not None
    await give_grant(stores(deps), USER, rules, at=hours(30), amount_micro=50 * MICRO, **times)
    await memory.grant("user-1", 50, now=hours(30), **times)

    for quota in quotas:
        assert await credits_at(quota, hours(31)) == (10, 0)


async def test_what_a_grant_repays_is_stored_with_it(deps: Deps, apply_tiers: Any):
    await apply_tiers(deps, TIERS)
    await deps.quota.consume("user-1", "image", 30, now=hours(1))

    await give(deps, 4, at=hours(2), expires_at=hours(3))

    async with deps.database.connection() as connection:
        left = await connection.fetchval("SELECT left_micro FROM credit_grants WHERE name = 'g'")
        repaid = await connection.fetchval(
            "SELECT amount_micro FROM credit_entries WHERE kind = 'repaid' AND created_at = $1",
            hours(2),
        )
    assert (left, repaid) == (0, 4 * MICRO)
    assert await credits_at(deps.quota, hours(4)) == (0, 6)
    rules = await stored_rules(deps.database)
    assert rules is not None
    verifier = Verifier(
        deps.database, rules, shards=deps.settings.shards, grace_ms=0, fix=False, at=hours(4)
    )
    assert (await verifier.run()).findings == []


async def test_a_repeat_gives_nothing_more_and_a_user_is_made(deps: Deps):
    first = await give(deps, 5, at=START)
    again = await give(deps, 5, at=hours(1))

    assert again.id == first.id
    assert await credits_at(deps.quota, hours(1)) == (5, 0)


async def test_one_without_an_instant_is_given_now(deps: Deps):
    rules = await stored_rules(deps.database)
    assert rules is not None
    before = datetime.now(UTC)

    grant = await give_grant(stores(deps), USER, rules, amount_micro=MICRO)

    assert before - timedelta(minutes=1) < grant.created_at == grant.effective_at


async def test_what_is_refused_leaves_no_user_behind(deps: Deps):
    with pytest.raises(InvalidValueError):
        await give(deps, 5, at=START, kind="gift")

    async with deps.database.connection() as connection:
        assert await connection.fetchval("SELECT count(*) FROM users") == 0


async def test_if_nobody_applies_the_log_it_says_so_and_nothing_is_given(
    deps: Deps, monkeypatch: pytest.MonkeyPatch
):
    await deps.quota.record("user-1", "tokens", 1)
    function: Any = standing_still
    monkeypatch.setitem(function.__wrapped__.__kwdefaults__, "wait_s", 0.1)
    rules = await stored_rules(deps.database)
    assert rules is not None
    waiting = Stores(deps.database, deps.redis, deps.keys)

    with pytest.raises(QuotaUnavailableError, match="is a worker running"):
        await give_grant(waiting, USER, rules, amount_micro=MICRO)

    async with deps.database.connection() as connection:
        assert await connection.fetchval("SELECT count(*) FROM credit_grants") == 0


async def test_nothing_is_given_if_the_user_does_not_stand_still_at_the_commit(
    deps: Deps, monkeypatch: pytest.MonkeyPatch
):
    rules = await stored_rules(deps.database)
    assert rules is not None
    store = store_account

    async def lose_the_token(*arguments: Any) -> None:
        await deps.redis.delete(deps.keys.shard_of(USER.id).token_of(USER.id.hex))
        await store(*arguments)

    monkeypatch.setattr(giving, "store_account", lose_the_token)
    with pytest.raises(QuotaUnavailableError, match="lost"):
        await give_grant(stores(deps), USER, rules, amount_micro=MICRO)

    async with deps.database.connection() as connection:
        assert await connection.fetchval("SELECT count(*) FROM credit_grants") == 0
