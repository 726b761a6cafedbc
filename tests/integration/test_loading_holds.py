"""A user that is loaded stands where it stood, whether what it did is applied, in the log, or both."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from quota.values import parse_credits, parse_user_id
from service.grants import add_grant
from service.staleness import drop_stale_users
from service.tiers import stored_rules
from service.users import put_user

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from quota.rules import Rules
    from worker.deps import Deps

    ApplyTiers = Callable[[Deps, dict[str, Any]], Awaitable[Rules]]

USER = parse_user_id("user-1")
START = datetime(2025, 1, 31, 22, 50, tzinfo=UTC)
TIERS: dict[str, Any] = {
    "default_tier": "paid",
    "features": {"unit": {"price": "0.5"}, "free": {"price": "0"}},
    "tiers": {
        "paid": {
            "overdraft": True,
            "credits": {"amount": "20", "every": "day"},
            "limits": {
                "unit": [
                    {"max": 5000, "per": "hour"},
                    {"max": 9000, "per": "month"},
                    {"max": 100, "per": "window:1800"},
                    {"max": "unlimited", "per": "lifetime"},
                ],
                "free": [{"max": 5000, "per": "day"}, {"max": 5000, "per": "cycle"}],
            },
        }
    },
}


async def forget(deps: Deps) -> None:
    shard = deps.keys.shard_of(USER.id)
    await deps.redis.delete(shard.user_of(USER.id.hex), shard.grants_of(USER.id.hex))


async def settle(deps: Deps) -> None:
    while await deps.drain.run(seconds_max=5):
        pass


async def give(deps: Deps, amount: str, at: datetime, **fields: Any) -> None:
    rules = await stored_rules(deps.database)
    assert rules is not None
    async with deps.database.session() as session:
        micro = parse_credits(amount, field="amount")
        await add_grant(session, USER, rules, amount_micro=micro, at=at, **fields)
    await drop_stale_users(deps.database, deps.redis, deps.keys, user_id=USER.id)


async def standing(deps: Deps, at: datetime) -> dict[str, Any]:
    """What decides about the user, less which windows are open: an empty one may be or not."""
    seen = (await deps.quota.balance("user-1", now=at)).as_dict()
    for state in seen["limits"].values():
        if state["used"] == 0:
            state["resets_at"] = None
    return seen


@pytest.fixture
async def paid(deps: Deps, apply_tiers: ApplyTiers) -> Deps:
    await apply_tiers(deps, TIERS)
    return deps


async def test_a_hold_counts_until_it_ends_also_after_a_load(paid: Deps) -> None:
    await give(paid, "100", START, name="g")
    async with paid.quota.reserve("user-1", "unit", 40, ttl=600, now=START) as hold:
        for applied in (False, True):
            if applied:
                await settle(paid)
            await forget(paid)
            seen = await standing(paid, START)
            assert seen["credits"] == "100"  # 120 less 20 held
            assert seen["limits"]["unit/hour"]["used"] == 40
            assert seen["limits"]["unit/window:1800"]["used"] == 40
            assert seen["holds"] == {
                hold.id: {"feature": "unit", "amount": 40, "expires_at": "2025-01-31T23:00:00Z"}
            }
        settled = await hold.commit(10, now=START)

    assert (settled.status, settled.amount) == ("committed", 10)
    await forget(paid)
    seen = await standing(paid, START)
    assert (seen["credits"], seen["holds"]) == ("115", {})
    assert seen["limits"]["unit/hour"]["used"] == 10


@pytest.mark.parametrize("applied", [False, True])
async def test_a_hold_that_is_over_when_it_is_loaded_expires_by_the_next_decision(
    paid: Deps, applied: bool
) -> None:
    await give(paid, "100", START, name="g")
    await paid.quota.reserve("user-1", "unit", 40, ttl=60, key="h", now=START)
    if applied:
        await settle(paid)
    await forget(paid)
    later = START + timedelta(minutes=5)

    decision = await paid.quota.consume("user-1", "unit", 2, now=later)

    assert str(decision.credits) == "119"
    assert {state.per: state.used for state in decision.limits}["hour"] == 2
    assert (await paid.quota.release("user-1", "h", now=later)).status == "expired"
    await settle(paid)
    async with paid.database.connection() as connection:
        assert await connection.fetchval("SELECT status FROM holds WHERE key = 'h'") == "expired"


async def test_a_loaded_hold_is_found_by_who_looks_for_those_that_are_due(paid: Deps) -> None:
    await paid.quota.reserve("user-1", "unit", 40, ttl=60, now=START)
    shard = paid.keys.shard_of(USER.id)
    await paid.redis.delete(shard.due)
    await forget(paid)

    await paid.quota.balance("user-1", now=START)

    due_ms = int((START + timedelta(seconds=60)).timestamp() * 1000)
    assert await paid.redis.zrange(shard.due, 0, -1, withscores=True) == [(b"user-1", due_ms)]


async def test_what_comes_late_counts_in_the_period_before_whatever_is_loaded(paid: Deps) -> None:
    ended = datetime(2025, 2, 1, tzinfo=UTC)
    await paid.quota.consume("user-1", "free", 3, now=ended - timedelta(minutes=30))
    await paid.quota.reserve(
        "user-1", "free", 4, ttl=7200, key="h", now=ended - timedelta(minutes=20)
    )
    late = {"occurred_at": ended - timedelta(minutes=10)}
    now = ended + timedelta(minutes=20)
    used = []
    for step in range(4):
        decision = await paid.quota.consume("user-1", "free", 2, now=now, **late)
        used.append({state.per: state.used for state in decision.limits}["day"])
        if step == 1:
            await settle(paid)
        await forget(paid)
    ontime = await paid.quota.consume("user-1", "free", 1, now=now)
    await paid.quota.release("user-1", "h", now=now)
    again = await paid.quota.check("user-1", "free", 1, now=now, **late)

    assert used == [9, 11, 13, 15]
    assert {state.per: state.used for state in ontime.limits}["day"] == 1
    assert {state.per: state.used for state in again.limits}["day"] == 11


async def test_what_comes_too_late_counts_now_also_when_it_is_loaded(paid: Deps) -> None:
    ended = datetime(2025, 2, 1, tzinfo=UTC)
    now = ended + timedelta(minutes=90)
    await paid.quota.record("user-1", "free", 3, now=now, occurred_at=ended - timedelta(days=3))
    for applied in (False, True):
        if applied:
            await settle(paid)
        await forget(paid)
        assert (await standing(paid, now))["limits"]["free/day"]["used"] == 3


@pytest.mark.parametrize("seed", range(6))
async def test_a_load_changes_nothing_of_where_a_user_stands(paid: Deps, seed: int) -> None:
    chance = random.Random(seed)
    now = START
    await give(paid, "30", now, name="promo", kind="promo", expires_at=now + timedelta(hours=3))
    await give(paid, "40", now, name="later", effective_at=now + timedelta(hours=2))
    await give(paid, "15", now, name="again", every="day", effective_at=now - timedelta(hours=21))
    open_: list[str] = []
    for step in range(40):
        now += timedelta(minutes=chance.choice([0, 0, 3, 17, 40]))
        what = chance.choice(["consume", "consume", "late", "reserve", "commit", "release"])
        feature = chance.choice(["unit", "unit", "free"])
        amount = chance.randint(1, 25)
        if what == "consume":
            await paid.quota.consume("user-1", feature, amount, now=now)
        elif what == "late":
            past = now - timedelta(minutes=chance.choice([10, 50, 70, 3000]))
            await paid.quota.record("user-1", feature, amount, now=now, occurred_at=past)
        elif what == "reserve":
            ttl = chance.choice([60, 1000, 7200])
            key = f"hold-{step}"
            if await paid.quota.reserve("user-1", feature, amount, ttl=ttl, key=key, now=now):
                open_.append(key)
        elif open_:
            key = open_.pop(chance.randrange(len(open_)))
            if what == "commit":
                actual = chance.choice([None, 0, 1, 30])
                await paid.quota.commit("user-1", key, actual, now=now)
            else:
                await paid.quota.release("user-1", key, now=now)
        before = await standing(paid, now)
        if chance.random() < 0.4:
            await settle(paid)
        explained = await paid.quota.explain("user-1", "unit", now=now)
        assert explained.compared is not None
        assert [one for one in explained.compared if one.drift] == [], step
        await forget(paid)
        assert await standing(paid, now) == before, step


async def test_a_new_calendar_counts_holds_refunds_and_late_records_where_they_belong(
    paid: Deps,
) -> None:
    noon = datetime(2025, 3, 10, 12, tzinfo=UTC)
    rules = await stored_rules(paid.database)
    assert rules is not None
    await paid.quota.consume("user-1", "free", 100, key="k", now=noon)
    await paid.quota.reserve("user-1", "free", 7, ttl=86_400, now=noon)
    await paid.quota.record("user-1", "free", 5, now=noon, occurred_at=noon - timedelta(days=9))
    await settle(paid)
    await paid.quota.refund("k", 40, user_id="user-1", now=noon)

    async with paid.database.session() as session:
        await put_user(session, USER, rules, at=noon, timezone="Asia/Tokyo")
    await drop_stale_users(paid.database, paid.redis, paid.keys)

    assert (await standing(paid, noon))["limits"]["free/day"]["used"] == 60 + 7 + 5
