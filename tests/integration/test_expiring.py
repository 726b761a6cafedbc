"""What is over ends by itself, once, whoever looks, dies, or comes at the same time."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from quota.errors import QuotaUnavailableError
from quota.rules import Rules
from quota.values import parse_user_id
from service import expiry
from service.changes import Stores
from service.expiry import expire_subscription
from service.moves import move_user
from service.still import STILL
from service.users import put_user
from worker import expiring
from worker.deps import Deps, open_deps
from worker.expiring import expire_round, expire_subscriptions

START = datetime(2025, 3, 1, tzinfo=UTC)
END = START + timedelta(days=30)
LATER = END + timedelta(days=30)
SECONDS_MAX = 60
TIERS = {
    "default_tier": "small",
    "features": {"image": {"price": "1"}},
    "tiers": {
        "small": {
            "credits": {"amount": "20", "every": "month"},
            "limits": {"image": {"max": 5, "per": "year"}},
        },
        "big": {
            "credits": {"amount": "100", "every": "month"},
            "limits": {"image": {"max": 50, "per": "year"}},
        },
    },
}


@pytest.fixture
async def rules(deps: Deps, apply_tiers: Any) -> Rules:
    applied: Rules = await apply_tiers(deps, TIERS)
    return applied


async def on_big(deps: Deps, rules: Rules, *users: str, until: datetime = END) -> None:
    async with deps.database.session() as session:
        for user in users:
            found = parse_user_id(user)
            await put_user(session, found, rules, at=START, tier="big", until=until)


async def tiers(deps: Deps) -> dict[str, str]:
    async with deps.database.connection() as connection:
        rows = await connection.fetch("SELECT external_id, tier FROM users")
    return {row["external_id"]: row["tier"] for row in rows}


async def stretches(deps: Deps) -> list[tuple[str, str]]:
    async with deps.database.connection() as connection:
        rows = await connection.fetch("SELECT tier, status FROM subscriptions ORDER BY started_at")
    return [(row["tier"], row["status"]) for row in rows]


async def events(deps: Deps) -> list[tuple[str, str]]:
    async with deps.database.connection() as connection:
        rows = await connection.fetch(
            "SELECT u.external_id, e.kind FROM subscription_events e JOIN users u ON u.id = e.user_id"
            " ORDER BY 1, 2"
        )
    return [tuple(row) for row in rows]


def counted(deps: Deps) -> float:
    return deps.registry.get_sample_value("allotment_subscriptions_expired_total") or 0.0


async def test_who_is_over_goes_to_the_default_tier_and_is_told_of_once(deps: Deps, rules: Rules):
    await on_big(deps, rules, "over")
    await on_big(deps, rules, "going-on", until=END + timedelta(microseconds=1))
    await on_big(deps, rules, "for-ever")
    async with deps.database.session() as session:
        await put_user(session, parse_user_id("for-ever"), rules, at=START, until="never")
    assert await expire_round(deps, at=END - timedelta(microseconds=1)) == 0

    assert [await expire_round(deps, at=END) for _ in range(3)] == [1, 0, 0]

    assert await tiers(deps) == {"over": "small", "going-on": "big", "for-ever": "big"}
    assert await events(deps) == [("over", "expired")]
    assert counted(deps) == 1


async def test_what_was_used_stays_used_under_the_limits_that_follow(deps: Deps, rules: Rules):
    await on_big(deps, rules, "user-1")
    assert await deps.quota.consume("user-1", "image", 12, now=END - timedelta(days=1))

    await expire_round(deps, at=END)

    balance = await deps.quota.balance("user-1", now=END)
    assert (balance.tier, balance.limits["image/year"].used) == ("small", 12)
    decision = await deps.quota.consume("user-1", "image", 1, now=END)
    assert (decision.allowed, decision.code) == (False, "limit_exceeded")
    assert balance.credits == 8  # of 20, with 12 used


async def test_a_hold_that_is_over_meanwhile_ends_and_one_that_is_not_goes_on(
    deps: Deps, rules: Rules
):
    await on_big(deps, rules, "user-1")
    before = END - timedelta(minutes=1)
    assert await deps.quota.reserve("user-1", "image", 1, key="short", ttl=10, now=before)
    assert await deps.quota.reserve("user-1", "image", 2, key="long", ttl=3600, now=before)

    await expire_round(deps, at=END)

    ended = await deps.quota.commit("user-1", "short", now=END)
    committed = await deps.quota.commit("user-1", "long", now=END)
    assert (ended.status, committed.status) == ("expired", "committed")


async def test_workers_at_once_end_each_stretch_once(deps: Deps, rules: Rules):
    users = [f"user-{number}" for number in range(12)]
    await on_big(deps, rules, *users)

    async with open_deps(deps.settings) as other:
        rounds = [expire_round(one, at=END) for one in (deps, other, deps, other)]
        ended = await asyncio.gather(*rounds)
        assert sum(ended) == len(users) == counted(deps) + counted(other)

    assert set((await tiers(deps)).values()) == {"small"}
    assert await events(deps) == sorted((user, "expired") for user in users)


async def test_a_worker_that_dies_before_its_commit_has_changed_nothing(
    deps: Deps, rules: Rules, monkeypatch: pytest.MonkeyPatch
):
    await on_big(deps, rules, "user-1")
    reached = asyncio.Event()

    async def put_and_hang(*args: Any, **named: Any) -> None:
        await put_user(*args, **named)
        reached.set()
        await asyncio.Event().wait()

    with monkeypatch.context() as patch:
        patch.setattr(expiry, "put_user", put_and_hang)
        dying = asyncio.create_task(expire_round(deps, at=END))
        async with asyncio.timeout(SECONDS_MAX):
            await reached.wait()
        dying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await dying

    assert await stretches(deps) == [("big", "active")]
    assert await events(deps) == []
    assert await expire_round(deps, at=END) == 1
    assert await stretches(deps) == [("big", "expired"), ("small", "active")]
    assert await events(deps) == [("user-1", "expired")]


async def test_a_worker_that_dies_after_its_commit_leaves_nothing_to_do_twice(
    deps: Deps, rules: Rules, monkeypatch: pytest.MonkeyPatch
):
    await on_big(deps, rules, "user-1")
    await deps.quota.balance("user-1", now=START)  # Redis has the user, as one on big

    async def die(*_: Any) -> None:
        raise asyncio.CancelledError

    with monkeypatch.context() as patch:
        patch.setattr(expiry, "drop_quietly", die)
        with pytest.raises(asyncio.CancelledError):
            await expire_round(deps, at=END)

    assert await expire_round(deps, at=END) == 0
    assert await events(deps) == [("user-1", "expired")]
    assert (await deps.quota.balance("user-1", now=END)).tier == "small"


@pytest.mark.parametrize("attempt", range(3))
async def test_a_renewal_that_races_the_check_wins_or_comes_after_it(
    deps: Deps, rules: Rules, attempt: int
):
    await on_big(deps, rules, "user-1")
    stores = Stores(deps.database, deps.redis, deps.keys, settle=None, roll=deps.quota.roll)

    async def renew() -> None:
        await asyncio.sleep(attempt * 0.004)
        await move_user(stores, parse_user_id("user-1"), rules, at=END, tier="big", until=LATER)

    _, ended = await asyncio.gather(renew(), expire_round(deps, at=END))

    found = await stretches(deps)
    assert await tiers(deps) == {"user-1": "big"}
    if ended:
        assert found[0] == ("big", "expired")
        assert found[-1] == ("big", "active")
        assert ("user-1", "expired") in await events(deps)
    else:
        assert found == [("big", "active")]
        assert await events(deps) == []


async def test_a_stretch_that_was_prolonged_after_it_was_found_goes_on(deps: Deps, rules: Rules):
    await on_big(deps, rules, "user-1")
    await on_big(deps, rules, "user-1", until=LATER)
    stores = Stores(deps.database, deps.redis, deps.keys)

    assert await expire_subscription(stores, parse_user_id("user-1"), rules, at=END) is None

    assert await stretches(deps) == [("big", "active")]
    assert await events(deps) == []


async def test_who_can_not_be_ended_now_holds_up_nobody_and_is_tried_again(
    deps: Deps, rules: Rules, monkeypatch: pytest.MonkeyPatch
):
    users = [f"user-{number}" for number in range(5)]
    await on_big(deps, rules, *users)
    monkeypatch.setattr(expiring, "_USERS_MAX", 2)

    async def refuse_one(stores: Any, user: Any, *args: Any, **named: Any) -> Any:
        if user.text == "user-3":
            raise QuotaUnavailableError("another change of this user is under way")
        return await expire_subscription(stores, user, *args, **named)

    with monkeypatch.context() as patch:
        patch.setattr(expiring, "expire_subscription", refuse_one)
        assert await expire_round(deps, at=END) == 4
    assert (await tiers(deps))["user-3"] == "big"

    assert await expire_round(deps, at=END) == 1
    assert set((await tiers(deps)).values()) == {"small"}


async def test_a_round_ends_in_time_and_the_next_one_goes_on(
    deps: Deps, rules: Rules, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(expiring, "_USERS_MAX", 2)
    await on_big(deps, rules, *(f"user-{number}" for number in range(5)))

    ended = [await expire_round(deps, at=END, seconds_max=0) for _ in range(6)]
    assert ended == [1, 1, 1, 1, 1, 0]


async def test_those_that_can_not_be_ended_come_after_the_others(
    deps: Deps, rules: Rules, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(expiring, "_WAIT_S", 0.1)
    monkeypatch.setattr(expiring, "_USERS_MAX", 1)
    await on_big(deps, rules, "busy")
    await on_big(deps, rules, "free", until=END + timedelta(minutes=1))
    now, busy = END + timedelta(minutes=2), parse_user_id("busy").id
    token = deps.keys.shard_of(busy).token_of(busy.hex)
    await deps.redis.set(token, STILL + "of somebody else")

    assert await expire_round(deps, at=now, seconds_max=0) == 0
    assert deps.not_ended == {busy}
    assert await expire_round(deps, at=now, seconds_max=0) == 1
    assert await tiers(deps) == {"busy": "big", "free": "small"}

    await deps.redis.delete(token)
    assert await expire_round(deps, at=now) == 1
    assert deps.not_ended == set()


async def test_what_stretches_come_to_is_stored_when_none_can_be_ended(deps: Deps, rules: Rules):
    await on_big(deps, rules, "user-1")
    async with deps.database.connection() as connection:
        await connection.execute("ALTER TABLE users RENAME COLUMN external_id TO hidden")

    assert await expire_subscriptions({"deps": deps}) == 0

    async with deps.database.connection() as connection:
        reached = await connection.fetch("SELECT highest_tier_reached FROM user_lifetime_stats")
    assert [name for (name,) in reached] == ["big"]
    value = deps.registry.get_sample_value
    failed = {"function": "expire_subscriptions", "outcome": "failed"}
    assert value("allotment_jobs_total", failed) == 1
    assert (value("allotment_subscriptions_overdue_seconds") or 0) > 24 * 3600


async def test_many_that_are_over_at_once_end_a_batch_at_a_time(
    deps: Deps, rules: Rules, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(expiring, "_USERS_MAX", 25)
    count = 60
    async with deps.database.connection() as connection:
        await connection.execute(
            """
            WITH made AS (
                INSERT INTO users (id, external_id, tier, created_at, anchor)
                SELECT gen_random_uuid(), NULL, 'big', $1, $1 FROM generate_series(1, $2) RETURNING id
            )
            INSERT INTO subscriptions (user_id, tier, started_at, ends_at)
            SELECT id, 'big', $1, $3 FROM made
            """,
            START, count, END,
        )  # fmt: skip

    ended = 0
    while found := await expire_round(deps, at=END):
        ended += found

    assert ended == count == counted(deps)
    async with deps.database.connection() as connection:
        kinds = await connection.fetch("SELECT kind, count(*) FROM subscription_events GROUP BY 1")
    assert [tuple(row) for row in kinds] == [("expired", count)]


async def test_of_a_tier_that_became_the_default_a_new_stretch_begins(
    deps: Deps, rules: Rules, apply_tiers: Any
):
    await on_big(deps, rules, "user-1")
    await apply_tiers(deps, {**TIERS, "default_tier": "big"})

    assert [await expire_round(deps, at=END) for _ in range(2)] == [1, 0]

    assert await stretches(deps) == [("big", "expired"), ("big", "active")]


async def test_the_job_looks_by_the_clock_of_postgresql(deps: Deps, rules: Rules):
    await on_big(deps, rules, "over")
    await on_big(deps, rules, "going-on", until=datetime(2999, 1, 1, tzinfo=UTC))

    assert await expire_subscriptions({"deps": deps}) == 1

    assert await tiers(deps) == {"over": "small", "going-on": "big"}
    done = {"function": "expire_subscriptions", "outcome": "done"}
    assert deps.registry.get_sample_value("allotment_jobs_total", done) == 1
    async with deps.database.connection() as connection:
        reached = await connection.fetch("SELECT highest_tier_reached FROM user_lifetime_stats")
    assert [name for (name,) in reached] == ["big", "big"]
