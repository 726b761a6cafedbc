"""Hundreds of calls at once, from several clients, against tight limits and decimal costs."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from redis.asyncio import Redis

from quota.client import Quota
from quota.hold import Settlement
from quota.values import parse_user_id
from tests.integration.stacks import Real, imbalance, plain
from worker.deps import Deps

NOW = datetime(2025, 6, 1, 12, tzinfo=UTC)
USER = "crowded"
CLIENTS = 4
# Rounded half-even for each record: 0.333333 for one unit, 2.333334 for seven.
MICRO = {units: round(units * 0.333333333333 * 1_000_000) for units in range(1, 20)}
TIERS: dict[str, Any] = {
    "default_tier": "free",
    "features": {"unit": {"price": "0.333333333333"}},
    "tiers": {
        "free": {
            "limits": {
                "unit": [
                    {"max": 120, "per": "day"},
                    {"max": 150, "per": "window:3600"},
                    {"max": 40, "per": "month", "mode": "soft"},
                ],
            }
        },
    },
}


@pytest.fixture
async def real(deps: Deps) -> Real:
    """The stack on `TIERS`, with a user whose credits lie in many small grants."""
    stack = Real(deps)
    await stack.put_tiers(TIERS, at=NOW)
    for number in range(30):
        name, since = f"g{number}", NOW - timedelta(seconds=60 - number)
        await stack.grant(USER, id=name, amount="1.234567", priority=number % 3, now=since)
    return stack


@pytest.fixture
async def quotas(deps: Deps) -> AsyncIterator[list[Quota]]:
    """Clients as separate processes have them, each with its own connections."""
    async with AsyncExitStack() as stack:
        clients = []
        for _ in range(CLIENTS):
            redis = await stack.enter_async_context(Redis.from_url(deps.settings.quota_redis))
            quota = Quota(
                redis, prefix=deps.keys.prefix, shards=len(deps.keys.shards), loader=deps.loader
            )
            clients.append(await stack.enter_async_context(quota))
        yield clients


async def settled(real: Real, *, now: datetime) -> dict[str, Any]:
    """The balance, which is the same in Redis and as PostgreSQL has it; the credits add up."""
    before = plain(await real.balance(USER, now=now))
    await real.apply()
    await real.forget(USER)
    after = plain(await real.balance(USER, now=now))
    assert after == before
    assert await imbalance(real.deps, USER, now=now) == 0
    assert isinstance(after, dict)
    return after


async def applied(real: Real) -> tuple[int, int, int]:
    """Records, units and micro-credits that PostgreSQL has of the user."""
    query = """
        SELECT count(*), coalesce(sum(amount), 0), coalesce(sum(credits_consumed * 1000000), 0)
        FROM usage_logs WHERE user_id = $1
    """
    async with real.deps.database.connection() as connection:
        row = await connection.fetchrow(query, parse_user_id(USER).id)
    assert row is not None
    return int(row[0]), int(row[1]), int(row[2])


@pytest.mark.parametrize(("grants", "code"), [(30, "insufficient_credits"), (40, "limit_exceeded")])
async def test_no_unit_and_no_credit_is_taken_twice(
    real: Real, quotas: list[Quota], grants: int, code: str
):
    for number in range(30, grants):
        await real.grant(USER, id=f"g{number}", amount="1.234567", now=NOW)
    calls = [
        quotas[number % CLIENTS].consume(USER, "unit", 1 + number % 3, now=NOW, key=f"k{number}")
        for number in range(400)
    ]

    decisions = await asyncio.gather(*calls)

    taken = [decision for decision in decisions if decision]
    units, micro = sum(d.amount for d in taken), sum(MICRO[d.amount] for d in taken)
    assert {decision.code for decision in decisions} == {"ok", "soft_limit", code}
    # Whoever asks for one unit is served as long as there is one.
    assert units == 120 if code == "limit_exceeded" else grants * 1_234_567 - micro < MICRO[1]
    assert [d.cost_micro for d in taken] == [MICRO[d.amount] for d in taken]
    found = await settled(real, now=NOW)
    assert found["credits_micro"] == grants * 1_234_567 - micro
    assert found["limits"]["unit/day"]["used"] == found["limits"]["unit/month"]["used"] == units
    assert await applied(real) == (len(taken), units, micro)


async def test_a_key_sent_by_everybody_counts_once(real: Real, quotas: list[Quota]):
    calls = [
        quotas[number % CLIENTS].consume(USER, "unit", 7, now=NOW, key=f"k{number % 5}")
        for number in range(300)
    ]

    decisions = await asyncio.gather(*calls)

    assert sum(decision.replayed for decision in decisions) == 295
    assert all(decision.cost_micro == 2_333_333 for decision in decisions)
    assert (await settled(real, now=NOW))["limits"]["unit/day"]["used"] == 35
    assert await applied(real) == (5, 35, 5 * 2_333_333)


async def test_holds_that_end_at_once_end_exactly(real: Real, quotas: list[Quota]):
    chance = random.Random(20250601)
    ends: Counter[str] = Counter()
    committed: list[Settlement] = []

    async def application(number: int) -> None:
        quota = quotas[number % CLIENTS]
        hold = await quota.reserve(USER, "unit", 1 + number % 4, ttl=60, key=f"h{number}", now=NOW)
        if not hold:
            ends["denied"] += 1
            return
        await asyncio.sleep(chance.random() / 100)
        end = chance.choice(["commit", "less", "more", "release", "both", "leave"])
        ends[end] += 1
        held = hold.decision.amount
        if end == "leave":
            return
        if end == "both":
            one, other = await asyncio.gather(hold.commit(now=NOW), hold.release(now=NOW))
            assert (one.status, one.amount, one.cost) == (other.status, other.amount, other.cost)
            committed.append(one)
        elif end == "release":
            assert await hold.release(now=NOW)
        else:
            amount = {"commit": held, "less": held - 1, "more": held + 1}[end]
            settlement = await hold.commit(amount, now=NOW)
            if settlement.status == "open":
                ends["surplus denied"] += 1
                settlement = await hold.commit(now=NOW)
            committed.append(settlement)

    await asyncio.gather(*(application(number) for number in range(400)))

    spent = [one for one in committed if one.status == "committed" and one.amount]
    assert all(one.cost_micro == MICRO[one.amount] for one in spent)
    assert {"denied", "leave", "both", "release", "commit", "less", "more"} <= set(ends)
    later = NOW + timedelta(seconds=60)
    found = await settled(real, now=later)
    assert found["credits_micro"] == 30 * 1_234_567 - sum(one.cost_micro for one in spent)
    assert found["limits"]["unit/day"]["used"] == sum(one.amount for one in spent)
    assert found["holds"] == {}
    records, units, micro = await applied(real)
    assert records >= len(spent)
    assert (units, micro) == (found["limits"]["unit/day"]["used"], sum(s.cost_micro for s in spent))


async def test_what_expires_under_a_crowd_expires_once(real: Real, quotas: list[Quota]):
    holds = [
        await quotas[0].reserve(USER, "unit", 11, ttl=10, key=f"h{number}", now=NOW)
        for number in range(10)
    ]
    assert all(holds)
    later = NOW + timedelta(seconds=10)

    decisions, settlements = await asyncio.gather(
        asyncio.gather(
            *(quotas[number % CLIENTS].consume(USER, "unit", now=later) for number in range(300))
        ),
        asyncio.gather(
            *(
                quotas[number % CLIENTS].commit(USER, f"h{number % 10}", now=later)
                for number in range(90)
            )
        ),
    )

    taken = sum(bool(decision) for decision in decisions)
    assert {settlement.status for settlement in settlements} == {"expired"}
    assert taken == 30 * 1_234_567 // MICRO[1]
    found = await settled(real, now=later)
    assert found["limits"]["unit/day"]["used"] == taken
    assert found["credits_micro"] == 30 * 1_234_567 - taken * MICRO[1]


async def test_a_period_that_ends_under_a_crowd_ends_once(real: Real, quotas: list[Quota]):
    instants = [NOW, NOW.replace(hour=23, minute=59, second=59), NOW + timedelta(hours=12)]
    for now in instants:  # the last begins another day
        await asyncio.gather(
            *(quotas[number % CLIENTS].consume(USER, "unit", now=now) for number in range(60))
        )

    found = await settled(real, now=instants[-1])
    taken = 30 * 1_234_567 // MICRO[1]
    assert found["limits"]["unit/month"]["used"] == taken == 111
    assert found["limits"]["unit/day"]["used"] == 0


async def test_whoever_is_cancelled_ends_also_where_the_connection_has_a_timeout(
    deps: Deps,
) -> None:
    """redis-py bounds a write by asyncio.wait_for, which may swallow a cancellation."""
    assert deps.redis.connection_pool.connection_kwargs["socket_timeout"]
    answered = asyncio.Event()

    async def work() -> None:
        while True:
            await deps.quota.consume("user-1", "tokens", 1)
            answered.set()

    for _ in range(5):
        answered.clear()
        working = asyncio.create_task(work())
        await answered.wait()
        working.cancel()
        ended, _ = await asyncio.wait([working], timeout=10)
        while not working.done():  # so that a failure ends too
            working.cancel()
            await asyncio.wait([working], timeout=0.05)
        assert ended
