"""Holds on real servers: as a block, across processes, over their ttl, over a loss of Redis."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from quota import (
    InvalidValueError,
    KeyConflictError,
    Quota,
    QuotaUnavailableError,
    UnknownHoldError,
)
from quota.scripts import ScriptCaller, script
from quota.values import parse_user_id
from service.grants import add_grant
from service.staleness import drop_stale_users
from service.tiers import stored_rules
from worker.deps import Deps
from worker.holds import expire_holds

NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)
LATER = NOON + timedelta(seconds=60)


async def used(deps: Deps, user: str, name: str, *, now: datetime = NOON) -> int:
    balance = await deps.quota.balance(user, now=now)
    return balance.limits[name].used


async def rows(deps: Deps, query: str) -> list[dict[str, Any]]:
    async with deps.database.connection() as connection:
        return [dict(row) for row in await connection.fetch(query)]


async def drained(deps: Deps) -> None:
    while await deps.drain.run(seconds_max=10):
        pass


async def lose_redis(deps: Deps) -> None:
    async for key in deps.redis.scan_iter(f"{deps.keys.prefix}:*", count=1000):
        await deps.redis.unlink(key)


async def test_a_block_commits_what_was_used_and_the_rest_goes_back(deps: Deps):
    async with deps.quota.reserve("u", "event", 10, now=NOON) as hold:
        assert await used(deps, "u", "event/day") == 10
        assert await hold.commit(3, now=NOON)

    assert await used(deps, "u", "event/day") == 3
    await drained(deps)
    assert [row["amount"] for row in await rows(deps, "SELECT amount FROM usage_logs")] == [3]


async def test_an_exception_in_the_block_gives_all_back(deps: Deps):
    with pytest.raises(ZeroDivisionError):
        async with deps.quota.reserve("u", "event", 10, now=NOON):
            raise ZeroDivisionError

    assert await used(deps, "u", "event/day") == 0


async def test_leaving_the_block_without_a_commit_gives_all_back(deps: Deps):
    async with deps.quota.reserve("u", "event", 10, now=NOON) as hold:
        assert hold

    assert await used(deps, "u", "event/day") == 0
    assert (await deps.quota.commit("u", hold.id, now=NOON)).status == "released"


async def test_a_denied_hold_is_false_and_has_nothing_to_end(deps: Deps):
    async with deps.quota.reserve("u", "event", 101, now=NOON) as hold:
        assert not hold
        assert hold.decision.code == "limit_exceeded"
        with pytest.raises(UnknownHoldError):
            await hold.commit(now=NOON)


async def test_another_process_ends_a_hold_by_its_name(deps: Deps):
    await deps.quota.reserve("u", "event", 10, key="h", now=NOON)

    async with Quota(deps.redis, prefix=deps.keys.prefix, loader=deps.loader) as other:
        settlement = await other.commit("u", "h", 4, now=NOON)

    assert (settlement.status, settlement.amount) == ("committed", 4)


async def test_of_many_ends_at_once_one_wins_and_all_are_told(deps: Deps):
    await deps.quota.reserve("u", "event", 10, key="h", now=NOON)
    ends = [deps.quota.commit("u", "h", 1 + n % 9, now=NOON) for n in range(30)]
    ends += [deps.quota.release("u", "h", now=NOON) for _ in range(30)]

    settled = await asyncio.gather(*ends)

    assert len({(one.status, one.amount) for one in settled}) == 1
    assert sum(not one.replayed for one in settled) == 1
    assert await used(deps, "u", "event/day") == settled[0].amount


async def test_a_reserve_that_is_sent_again_holds_once(deps: Deps):
    first = await deps.quota.reserve("u", "event", 10, key="h", now=NOON)
    again = await deps.quota.reserve("u", "event", 10, key="h", now=NOON)

    assert again.decision.replayed
    assert not first.decision.replayed
    assert await used(deps, "u", "event/day") == 10


async def test_a_hold_of_a_user_who_does_nothing_more_is_ended_by_the_job(deps: Deps):
    await deps.quota.reserve("idle", "event", 10, key="h", ttl=30, now=NOON)
    before = await expire_holds(deps, now_ms=int((LATER.timestamp() - 31) * 1000))

    ended = await expire_holds(deps, now_ms=int(LATER.timestamp() * 1000))
    await drained(deps)

    assert (before, ended) == (0, 1)
    assert await rows(deps, "SELECT status FROM holds") == [{"status": "expired"}]
    assert await rows(deps, "SELECT day_used FROM usage_counters") == [{"day_used": 0}]
    assert await expire_holds(deps, now_ms=int(LATER.timestamp() * 1000)) == 0


async def test_a_hold_survives_the_loss_of_redis_once_it_was_applied(deps: Deps):
    await deps.quota.reserve("u", "event", 10, key="h", now=NOON)
    await drained(deps)
    await lose_redis(deps)

    assert await used(deps, "u", "event/day") == 10
    settlement = await deps.quota.commit("u", "h", 4, now=NOON)
    await drained(deps)

    assert settlement.status == "committed"
    assert await rows(deps, "SELECT amount FROM usage_logs") == [{"amount": 4}]


async def test_a_hold_that_redis_lost_and_nobody_asks_for_is_ended_too(deps: Deps):
    await deps.quota.reserve("u", "event", 10, key="h", ttl=30, now=NOON)
    await drained(deps)
    await lose_redis(deps)

    await expire_holds(deps, now_ms=int((LATER.timestamp() + 60) * 1000))
    await drained(deps)

    assert await rows(deps, "SELECT status FROM holds") == [{"status": "expired"}]


async def test_a_commit_of_a_user_who_left_redis_finds_the_hold(deps: Deps):
    await deps.quota.reserve("u", "event", 10, key="h", now=NOON)
    shard = deps.keys.shards
    for one in shard:
        async for key in deps.redis.scan_iter(one.user_of("*")):
            await deps.redis.unlink(key)

    assert (await deps.quota.commit("u", "h", now=NOON)).amount == 10


async def test_a_price_is_that_of_the_reserve(deps: Deps, apply_tiers: Any):
    document = {
        "default_tier": "t",
        "features": {"unit": {"price": "2"}},
        "tiers": {
            "t": {
                "credits": {"amount": "100", "every": "month"},
                "limits": {"*": {"max": 100, "per": "day"}},
            }
        },
    }
    await apply_tiers(deps, document)
    await deps.quota.reserve("u", "unit", 10, key="h", now=NOON)
    dearer = {**document, "features": {"unit": {"price": "7"}}}
    await apply_tiers(deps, dearer)

    settlement = await deps.quota.commit("u", "h", 3, now=NOON)

    assert settlement.as_dict()["cost"] == "6"
    assert (await deps.quota.consume("u", "unit", now=NOON)).as_dict()["cost"] == "7"
    await drained(deps)
    costs = await rows(deps, "SELECT credits_consumed::text AS cost FROM usage_logs ORDER BY 1")
    assert [row["cost"] for row in costs] == ["6.000000", "7.000000"]


@pytest.mark.parametrize("ttl", [0, -1, 86_401, 1.5, "60", True, None])
async def test_a_ttl_is_whole_seconds_of_a_day_at_most(deps: Deps, ttl: Any):
    with pytest.raises(InvalidValueError) as raised:
        await deps.quota.reserve("u", "event", 1, ttl=ttl, now=NOON)

    assert raised.value.field == "ttl"


async def test_a_hold_is_not_for_what_occurred(deps: Deps):
    with pytest.raises(InvalidValueError) as raised:
        await deps.quota.reserve("u", "event", 1, occurred_at=NOON, now=NOON)

    assert raised.value.field == "occurred_at"


@pytest.mark.parametrize("verb", ["commit", "release"])
async def test_a_hold_that_nobody_made_is_unknown(deps: Deps, verb: str):
    await deps.quota.record("u", "tokens", 1, now=NOON)

    with pytest.raises(UnknownHoldError) as raised:
        await getattr(deps.quota, verb)("u", "nothing", now=NOON)

    assert raised.value.code == "unknown_hold"
    assert "nothing" in str(raised.value)


async def test_an_allowance_that_is_changed_is_decided_by_at_once(deps: Deps, apply_tiers: Any):
    def document(amount: str) -> dict[str, Any]:
        tier = {
            "credits": {"amount": amount, "every": "month"},
            "limits": {"*": {"max": 100, "per": "day"}},
        }
        return {"default_tier": "t", "features": {"unit": {"price": "1"}}, "tiers": {"t": tier}}

    await apply_tiers(deps, document("20"))
    now = datetime.now(UTC)
    assert (await deps.quota.consume("u", "unit", 15, now=now)).as_dict()["credits"] == "5"
    await drained(deps)

    await apply_tiers(deps, document("100"))
    after = now + timedelta(seconds=5)

    assert (await deps.quota.balance("u", now=after)).as_dict()["credits"] == "85"
    assert (await deps.quota.consume("u", "unit", 5, now=after)).as_dict()["credits"] == "80"
    await drained(deps)
    await drop_stale_users(deps.database, deps.redis, deps.keys)
    await lose_redis(deps)
    assert (await deps.quota.balance("u", now=after)).as_dict()["credits"] == "80"


async def test_an_end_that_nobody_can_hear_says_so():
    with pytest.raises(QuotaUnavailableError):
        async with Quota.from_url("redis://127.0.0.1:1") as quota:
            await quota.commit("u", "h", now=NOON)


PRICED: dict[str, Any] = {
    "default_tier": "t",
    "features": {"unit": {"price": "0.5"}},
    "tiers": {
        "t": {
            "credits": {"amount": "100000", "every": "month"},
            "limits": {"*": {"max": 100_000, "per": "day"}},
        }
    },
}


async def test_a_thousand_holds_of_one_user_are_made_and_ended(deps: Deps, apply_tiers: Any):
    await apply_tiers(deps, PRICED)

    holds = await asyncio.gather(*(deps.quota.reserve("u", "unit", 4) for _ in range(1_000)))
    assert all(holds)
    settled = await asyncio.gather(*(hold.commit(3) for hold in holds))

    assert all(settled)
    assert (await deps.quota.balance("u")).as_dict()["credits"] == "98500"
    await drained(deps)
    assert await rows(deps, "SELECT status, count(*) AS n FROM holds GROUP BY 1") == [
        {"status": "committed", "n": 1_000}
    ]


async def test_a_crowd_at_the_instant_at_which_a_grant_expires_is_decided(deps: Deps):
    user, rules = parse_user_id("u"), await stored_rules(deps.database)
    assert rules is not None
    async with deps.database.session() as session:
        for number in range(300):
            await add_grant(
                session,
                user,
                rules,
                amount_micro=1_000_000,
                at=NOON,
                name=f"g{number}",
                expires_at=LATER if number < 100 else None,
            )
    await deps.quota.consume("u", "image", now=NOON)

    calls = [deps.quota.consume("u", "image", now=LATER) for _ in range(400)]
    decisions = await asyncio.gather(*calls)

    assert sum(decision.allowed for decision in decisions) == 200
    assert {decision.code for decision in decisions} == {"ok", "insufficient_credits"}


async def test_a_reserve_sent_again_after_redis_was_lost_holds_once(deps: Deps):
    await deps.quota.reserve("u", "event", 90, key="h", now=NOON)
    await drained(deps)
    await lose_redis(deps)

    again = await deps.quota.reserve("u", "event", 90, key="h", now=NOON)

    assert again.decision.replayed
    assert await used(deps, "u", "event/day") == 90
    with pytest.raises(KeyConflictError):
        await deps.quota.reserve("u", "event", 1, key="h", now=NOON)


async def test_a_hold_is_found_and_paid_for_after_redis_was_lost(deps: Deps, apply_tiers: Any):
    await apply_tiers(deps, PRICED)
    await deps.quota.reserve("u", "gone", 1, key="other", now=NOON)
    await deps.quota.reserve("u", "unit", 10, key="h", now=NOON)
    await drained(deps)
    await lose_redis(deps)

    assert (await deps.quota.commit("u", "h", 3, now=NOON)).as_dict()["cost"] == "1.5"


async def test_a_roll_does_not_forget_a_hold_that_came_meanwhile(deps: Deps):
    await deps.quota.consume("u", "event", now=NOON)
    held = asyncio.Event()

    call = ScriptCaller.call

    async def late(caller: ScriptCaller, of: Any, keys: Any, arguments: Any) -> Any:
        if of is script("roll") and not held.is_set():  # it has read, and is about to write
            held.set()
            await deps.quota.reserve("u", "event", 10, key="h", ttl=30, now=NOON)
        return await call(caller, of, keys, arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScriptCaller, "call", late)
        await deps.quota.roll("u", now=NOON)

    assert held.is_set()
    assert (await deps.quota.check("u", "event", 99, now=LATER)).allowed
    assert (await deps.quota.commit("u", "h", now=LATER)).status == "expired"


@pytest.mark.parametrize("field", ["head", "profile"])
async def test_what_an_older_version_left_of_a_user_is_loaded_again(deps: Deps, field: str):
    await deps.quota.consume("u", "event", 3, now=NOON)
    shard = deps.keys.shard_of(parse_user_id("u").id)
    name = parse_user_id("u").id.hex
    if field == "head":
        head = (await deps.redis.hget(shard.user_of(name), "h")).rsplit(b",", 1)[0]
        await deps.redis.hset(shard.user_of(name), "h", head)
    else:
        await deps.redis.set(shard.grants_of(name), b'[["UTC", 0, 1], [], 0, 0, 0, {}]')
        await deps.quota.roll("u", now=NOON)

    assert (await deps.quota.consume("u", "event", now=NOON)).used == 4
    assert await used(deps, "u", "event/day") == 4


async def test_what_a_block_raises_is_seen_though_the_hold_cannot_be_released(deps: Deps):
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 -- the block is what is tested
        async with deps.quota.reserve("u", "event", 10, now=NOON):
            await lose_redis(deps)
            raise ZeroDivisionError


async def test_how_a_hold_ended_is_told_after_redis_was_lost(deps: Deps):
    await deps.quota.reserve("u", "event", 10, key="h", now=NOON)
    await deps.quota.commit("u", "h", 4, now=NOON)
    await drained(deps)
    await lose_redis(deps)

    for verb in (deps.quota.commit, deps.quota.release):
        settlement = await verb("u", "h", now=NOON)
        assert (settlement.status, settlement.amount) == ("committed", 4)
        assert settlement.replayed
