"""Redis is compared with PostgreSQL and the log in one view; what differs is dropped, nothing else is drift."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from redis.asyncio import Redis

from quota.decision import Limit
from quota.period import Window
from quota.standing import counter_line, read_counters
from quota.values import instant_ms, parse_credits, parse_user_id
from service.grants import add_grant
from service.reconcile import ABSENT, BUSY, DRIFTED, SYNCED, Checked, Reconciler
from service.staleness import drop_stale_users
from service.sweep import next_users
from service.tiers import stored_rules
from tests.integration.stacks import Real
from worker import reconciling
from worker.deps import Deps
from worker.reconciling import reconcile_round, reconcile_users

USER = parse_user_id("user-1")


def reconciler(deps: Deps, **options: Any) -> Reconciler:
    return Reconciler(deps.database, deps.redis, deps.keys, grace_ms=3_600_000, **options)


async def check(deps: Deps, **options: Any) -> Checked:
    [one] = await reconciler(deps, **options).check([USER.id])
    return one


def told(checked: Checked) -> dict[str, int]:
    return {one.name: one.drift for one in checked.differences}


def hash_of(deps: Deps) -> str:
    return deps.keys.shard_of(USER.id).user_of(USER.id.hex)


async def tamper(deps: Deps, feature: str, more: int) -> None:
    """Count *more* units of every limit, as a stray write would."""
    line = await deps.redis.hget(hash_of(deps), f"f:{feature}")
    counters = read_counters(line)
    limits = [Limit(per, "hard", None) for per, _, _ in counters]
    used = {per: (Window(0, end_ms or None), units + more) for per, end_ms, units in counters}
    await deps.redis.hset(hash_of(deps), f"f:{feature}", counter_line(limits, used))


async def grant(deps: Deps, amount: str) -> None:
    rules = await stored_rules(deps.database)
    assert rules is not None
    async with deps.database.session() as session:
        micro = parse_credits(amount)
        await add_grant(session, USER, rules, at=datetime.now(UTC), amount_micro=micro)
    await drop_stale_users(deps.database, deps.redis, deps.keys)


async def usage(deps: Deps) -> dict[str, tuple[str, bool, int]]:
    """The columns of seed 004 by feature: status, whether it was ever compared, how often it differed."""
    async with deps.database.connection() as connection:
        rows = await connection.fetch("SELECT * FROM feature_usage")
    return {
        row["feature_name"]: (
            row["sync_status"],
            row["last_synced_at"] is not None,
            row["discrepancy_count"],
        )
        for row in rows
    }


async def busy_user(deps: Deps) -> None:
    """A user with credits, use that is applied, use that is not, and an open hold."""
    await grant(deps, "100")
    await deps.quota.consume("user-1", "unit", 2)
    await deps.quota.consume("user-1", "tokens", 5)
    await deps.drain.run(seconds_max=5)
    await deps.quota.consume("user-1", "event", 3)
    await deps.quota.reserve("user-1", "image", 4, key="h-1")


async def test_what_is_applied_and_what_is_not_yet_is_no_drift(deps: Deps):
    await busy_user(deps)

    assert await check(deps) == Checked(USER.id, SYNCED, [])


async def test_what_was_written_to_in_redis_is_found_and_healed(deps: Deps):
    await busy_user(deps)
    redis, name = deps.redis, hash_of(deps)
    held = await redis.hget(name, "o:h-1")
    tampered: list[tuple[Callable[[], Awaitable[Any]], dict[str, int]]] = [
        (lambda: tamper(deps, "event", 7), {"event/day": 7, "event/month": 7}),
        (lambda: tamper(deps, "tokens", -2), {"tokens/lifetime": -2}),
        (lambda: redis.hdel(name, "f:tokens"), {"tokens/lifetime": -5}),
        (lambda: redis.hincrby(name, "c", 2_500_000), {"credits": 2_500_000}),
        (lambda: redis.hincrby(name, "c", -1), {"credits": -1}),
        (lambda: redis.hdel(name, "o:h-1"), {"hold h-1": -4}),
        (lambda: redis.hset(name, "o:h-1", held.replace(b"|4|", b"|3|")), {"hold h-1": -1}),
        (lambda: redis.hset(name, "o:h-2", held), {"hold h-2": 4}),
    ]

    for tampering, drift in tampered:
        await tampering()
        found = await check(deps)
        assert found.outcome == DRIFTED
        assert told(found) == drift
        assert await reconciler(deps).heal([found]) == 1
        assert not await redis.exists(name)
        await deps.quota.check("user-1", "event")
        assert (await check(deps)).outcome == SYNCED

    balance = await deps.quota.balance("user-1")
    assert {per: state.used for per, state in balance.limits.items()} == {
        "event/day": 3, "event/month": 3, "image/month": 4, "tokens/lifetime": 5, "unit/month": 2,
    }  # fmt: skip
    assert (await deps.quota.commit("user-1", "h-1", 1)).status == "committed"


async def test_what_can_not_be_read_is_drift_and_dropped(deps: Deps):
    await busy_user(deps)
    redis, name = deps.redis, hash_of(deps)
    profile = deps.keys.shard_of(USER.id).grants_of(USER.id.hex)
    unreadable: list[Callable[[], Awaitable[Any]]] = [
        lambda: redis.hset(name, "c", "many"),
        lambda: redis.hset(name, "f:event", b"d,m|" + b"\xff" * 32),
        lambda: redis.hset(name, "o:x", "1|2"),
        lambda: redis.hset(name, "j", b"h,1\0"),
        lambda: redis.delete(profile),
        lambda: redis.set(profile, "[]"),
    ]

    for tampering in unreadable:
        await tampering()
        found = await check(deps)
        await reconciler(deps).heal([found])
        assert [one.name for one in found.differences] == ["readable"]
        assert (await deps.quota.balance("user-1")).limits["event/day"].used == 3


async def test_another_tier_in_redis_is_drift_and_the_rest_is_not_compared(deps: Deps):
    await busy_user(deps)
    async with deps.database.connection() as connection:
        await connection.execute("UPDATE users SET tier = 'pro'")

    found = await check(deps)

    assert [(one.name, one.cached, one.stored) for one in found.differences] == [
        ("tier", "free", "pro")
    ]


async def test_grants_that_share_the_credits_otherwise_are_drift(deps: Deps):
    await busy_user(deps)
    await grant(deps, "50")
    await deps.quota.check("user-1", "unit")
    async with deps.database.connection() as connection:
        await connection.execute(
            "UPDATE credit_grants SET left_micro = 146000000 - left_micro"  # 96 and 50 change places
        )

    found = await check(deps)

    assert sorted(one.drift for one in found.differences) == [-46_000_000, 46_000_000]


async def test_a_user_that_postgresql_does_not_have_is_drift(deps: Deps):
    await deps.quota.check("user-1", "event")
    async with deps.database.connection() as connection:
        await connection.execute("DELETE FROM users")

    found = await check(deps)
    await reconciler(deps).heal([found])

    assert [one.name for one in found.differences] == ["user"]
    assert not await deps.redis.exists(hash_of(deps))


async def test_a_user_that_is_not_in_redis_or_of_another_epoch_is_not_compared(deps: Deps):
    assert (await check(deps)).outcome == ABSENT
    await deps.quota.record("user-1", "tokens", 5)
    head = await deps.redis.hget(hash_of(deps), "h")
    await deps.redis.hset(hash_of(deps), "h", b"99," + head.partition(b",")[2])

    assert (await check(deps)).outcome == ABSENT


async def test_users_of_a_shard_that_was_lost_are_left_to_its_new_epoch(deps: Deps):
    await deps.quota.record("user-1", "tokens", 5)
    await deps.drain.run(seconds_max=5)
    shard = deps.keys.shard_of(USER.id)
    await deps.redis.xtrim(shard.log, maxlen=0, approximate=False)

    assert (await check(deps)).outcome == BUSY


async def test_a_shard_with_too_much_of_a_backlog_is_left_alone(deps: Deps):
    await deps.quota.record("user-1", "tokens", 5)
    await deps.quota.record("user-1", "tokens", 5)

    assert (await check(deps, backlog_max=1)).outcome == BUSY
    assert (await check(deps, backlog_max=2)).outcome == SYNCED


async def test_a_change_that_redis_has_not_heard_of_yet_is_no_drift(deps: Deps):
    await busy_user(deps)
    rules = await stored_rules(deps.database)
    assert rules is not None
    async with deps.database.session() as session:
        await add_grant(session, USER, rules, at=datetime.now(UTC), amount_micro=5)

    before = await check(deps)
    await drop_stale_users(deps.database, deps.redis, deps.keys)
    await deps.quota.check("user-1", "event")

    assert before.outcome == BUSY
    assert (await check(deps)).outcome == SYNCED


class UsingRedis(Redis):
    """A real client by which the user uses more, each time that the log is read."""

    deps: Deps

    async def xrange(self, *args: Any, **kwargs: Any) -> Any:
        await self.deps.quota.consume("user-1", "tokens", 1)
        found = await super().xrange(*args, **kwargs)
        await self.deps.quota.consume("user-1", "tokens", 1)
        return found


async def test_a_user_that_does_not_stand_still_is_left_for_another_time(deps: Deps):
    await busy_user(deps)
    async with UsingRedis.from_url(deps.settings.quota_redis) as redis:
        redis.deps = deps
        [found] = await Reconciler(
            deps.database, redis, deps.keys, grace_ms=3_600_000, tries_max=3
        ).check([USER.id])

    assert found.outcome == BUSY


async def test_what_is_used_and_applied_meanwhile_never_counts_as_drift(deps: Deps):
    users = [parse_user_id(f"user-{number}") for number in range(8)]
    stop = asyncio.Event()

    async def use(number: int) -> None:
        name, turn = f"user-{number}", 0
        while not stop.is_set():
            turn += 1
            await deps.quota.consume(name, "tokens", 1)
            hold = await deps.quota.reserve(name, "tokens", 3, key=f"{name}-{turn}")
            await (hold.commit(turn % 3) if turn % 2 else hold.release())
            await asyncio.sleep(number * 0.01)  # some stand still for a look, some never do

    async def work() -> None:
        while not stop.is_set():
            await deps.drain.run(seconds_max=5)
            await asyncio.sleep(0)

    using = [asyncio.create_task(use(number)) for number in range(8)]
    using.append(asyncio.create_task(work()))
    outcomes = []
    try:
        for _ in range(4):
            found = await reconciler(deps).check([user.id for user in users])
            outcomes += [one.outcome for one in found]
    finally:
        stop.set()
        await asyncio.gather(*using)

    assert DRIFTED not in outcomes
    after = await reconciler(deps).check([user.id for user in users])
    assert {one.outcome for one in after} == {SYNCED}


async def test_drift_is_found_in_a_user_that_goes_on_using_now_and_then(deps: Deps):
    await busy_user(deps)
    await tamper(deps, "event", 7)

    class UsingOnce(Redis):
        """A real client; between its first two looks the user uses more."""

        used = False

        async def xrange(self, *args: Any, **kwargs: Any) -> Any:
            if not self.used:
                self.used = True
                await deps.quota.consume("user-1", "event", 1)
            return await super().xrange(*args, **kwargs)

    async with UsingOnce.from_url(deps.settings.quota_redis) as redis:
        [found] = await Reconciler(deps.database, redis, deps.keys, grace_ms=3_600_000).check(
            [USER.id]
        )

    assert told(found) == {"event/day": 7, "event/month": 7}


async def test_what_was_found_is_written_to_feature_usage(deps: Deps):
    await busy_user(deps)
    await deps.drain.run(seconds_max=5)
    await tamper(deps, "event", 7)
    before = await usage(deps)

    await reconciler(deps).heal([await check(deps)])
    drifted = await usage(deps)
    await deps.quota.check("user-1", "event")
    await reconciler(deps).heal([await check(deps)])

    assert before["event"] == ("synced", False, 0)
    assert drifted["event"] == ("healed", True, 1)
    assert drifted["tokens"] == ("synced", False, 0)
    assert await usage(deps) == {
        "event": ("synced", True, 1),
        "tokens": ("synced", True, 0),
        "unit": ("synced", True, 0),
    }


async def test_drift_of_credits_concerns_every_feature_of_the_user(deps: Deps):
    await busy_user(deps)
    await deps.redis.hincrby(hash_of(deps), "c", 1)

    await reconciler(deps).heal([await check(deps)])

    assert await usage(deps) == {"tokens": ("healed", True, 1), "unit": ("healed", True, 1)}


async def test_a_row_that_a_worker_counts_in_is_not_waited_for(deps: Deps):
    await busy_user(deps)
    found = await check(deps)
    async with deps.database.connection() as other, other.transaction():
        await other.execute("UPDATE feature_usage SET usage_count = 9 WHERE feature_name = 'unit'")

        async with asyncio.timeout(5):
            await reconciler(deps).heal([found])

    assert await usage(deps) == {"tokens": ("synced", True, 0), "unit": ("synced", False, 0)}


async def test_the_rounds_of_the_job_see_every_user_and_heal_those_that_differ(deps: Deps):
    names = [f"user-{number}" for number in range(60)]
    await asyncio.gather(*(deps.quota.record(name, "tokens", 5) for name in names))
    await tamper(deps, "tokens", 3)
    await grant(deps, "1")
    await deps.quota.record("user-1", "tokens", 5)
    await tamper(deps, "tokens", 3)

    healed = [await reconcile_round(deps, users_max=20)]
    while int(await deps.redis.get(deps.keys.sweep)):
        healed.append(await reconcile_round(deps, users_max=20))

    value = deps.registry.get_sample_value
    assert sum(healed) == 1
    assert value("allotment_users_healed_total") == 1
    assert (value("allotment_users_reconciled_total", {"outcome": "synced"}) or 0) >= 59
    assert (await deps.quota.check("user-1", "tokens")).used == 10


async def test_the_gauges_are_those_of_the_last_round(deps: Deps):
    await busy_user(deps)
    await tamper(deps, "event", 7)
    await deps.redis.hincrby(hash_of(deps), "c", -500_000)
    names = ("users", "units", "credits")

    def gauges() -> list[float | None]:
        return [deps.registry.get_sample_value(f"allotment_drift_{name}") for name in names]

    await reconcile_round(deps, users_max=10_000)
    drifted = gauges()
    await deps.quota.check("user-1", "event")
    await reconcile_round(deps, users_max=10_000)

    assert drifted == [1, 14, 0.5]
    assert gauges() == [0, 0, 0]


async def test_a_round_ends_when_its_time_is_up_and_the_next_goes_on(
    deps: Deps, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(reconciling, "_USERS_AT_ONCE", 5)
    names = [f"user-{number}" for number in range(12)]
    await asyncio.gather(*(deps.quota.record(name, "tokens", 5) for name in names))

    await reconcile_round(deps, users_max=10_000, seconds_max=0)

    found = deps.registry.get_sample_value(
        "allotment_users_reconciled_total", {"outcome": "synced"}
    )
    assert found == 5


async def test_the_job_does_nothing_when_it_is_off_and_never_raises(deps: Deps):
    off = deps.settings.model_copy(update={"reconcile_users_per_round": 0})
    await busy_user(deps)
    await tamper(deps, "event", 7)
    ctx = {"deps": deps}

    assert await reconcile_users({"deps": replace(deps, settings=off)}) == 0
    async with Redis.from_url("redis://127.0.0.1:1") as nobody:
        assert await reconcile_users({"deps": replace(deps, redis=nobody)}) == 0
    assert await reconcile_users(ctx) == 1


async def test_a_sweep_sees_users_and_nothing_else(deps: Deps):
    names = [f"user-{number}" for number in range(25)]
    await asyncio.gather(*(deps.quota.record(name, "tokens", 5) for name in names))
    await deps.redis.set(f"{deps.keys.prefix}:{{s00}}:u:not-a-user", "x")
    await deps.redis.hset(f"{deps.keys.prefix}:{{s00}}:u:not-a-hex", "h", "x")
    seen: list[UUID] = []

    found, cursor = await next_users(deps.redis, deps.keys, 0, users_max=10)
    seen += found
    while cursor:
        found, cursor = await next_users(deps.redis, deps.keys, cursor, users_max=10)
        seen += found

    assert set(seen) == {parse_user_id(name).id for name in names}


async def test_users_as_of_other_instants_are_no_drift(deps: Deps):
    real = Real(deps)
    rules = await stored_rules(deps.database)
    assert rules is not None
    real.rules = rules
    start = datetime(2024, 1, 31, 22, 30, tzinfo=UTC)
    await real.set_user("user-1", now=start, timezone="Asia/Tokyo", anchor=start)
    await real.grant("user-1", now=start, id="g1", amount="10", every="day")
    instants = [start.replace(hour=23, minute=minute) for minute in (0, 20, 59)]
    found = []

    for turn, now in enumerate([*instants, datetime(2024, 2, 1, 23, 0, tzinfo=UTC)]):
        await deps.quota.consume("user-1", "unit", 1, now=now)
        await deps.quota.reserve("user-1", "event", 2, key=f"h{turn}", ttl=600, now=now)
        found += await reconciler(deps).check([USER.id], now_ms=instant_ms(now))
        if turn % 2:
            await deps.drain.run(seconds_max=5)
        later = instant_ms(now) + 3_600_000
        found += await reconciler(deps).check([USER.id], now_ms=later)

    assert [one.differences for one in found] == [[]] * 8
