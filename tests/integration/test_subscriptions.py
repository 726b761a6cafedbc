"""Stretches on tiers: one after the other, prolonged, told once, and what they come to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import asyncpg
import pytest

from quota.errors import InvalidValueError
from quota.rules import Rules
from quota.values import parse_user_id
from service.changes import Stores
from service.database import statement
from service.lifetime import lifetime_of
from service.migrations import upgrade
from service.moves import move_user
from service.rebuild import rebuild
from service.rollups import fold_all
from service.subscribed import Subscribed, store_subscribed, subscribed_of
from service.subscriptions import stretches_of
from service.users import find_user, put_user
from service.verify import Report, Verifier
from service.verify_rollups import verify_rollups
from worker.deps import Deps

USER = parse_user_id("user-1")
START = datetime(2025, 3, 1, tzinfo=UTC)
ANY = {"limits": {"*": {"max": "unlimited", "per": "month"}}}
TIERS = {"default_tier": "free", "tiers": {"free": ANY, "plus": ANY, "pro": ANY}}


def days(number: float) -> datetime:
    return START + timedelta(days=number)


@pytest.fixture
async def rules(deps: Deps, apply_tiers: Any) -> Rules:
    """TIERS, in force; free is the default, pro the highest."""
    applied: Rules = await apply_tiers(deps, TIERS)
    return applied


@pytest.fixture
async def empty_url(copy_of: Any) -> AsyncIterator[str]:
    """The address of a database without a table."""
    async with copy_of("template1") as url:
        yield url


@pytest.fixture
async def put(deps: Deps, rules: Rules) -> Any:
    """put(at, tier=…, until=…, …): change the user, which is made by the first of them."""

    async def put(at: datetime, **changes: Any) -> None:
        async with deps.database.session() as session:
            await put_user(session, USER, rules, at=at, **changes)

    return put


async def history(deps: Deps) -> list[tuple[Any, ...]]:
    """Tier, status, first and last day by START, day of the end, and revenue, of each stretch."""

    def day(instant: datetime | None) -> float | None:
        return None if instant is None else (instant - START) / timedelta(days=1)

    async with deps.database.session() as session:
        stretches = await stretches_of(session, await find_user(session, USER))
    return [
        (
            one.tier,
            one.status,
            day(one.started_at),
            day(one.ended_at),
            day(one.ends_at),
            one.revenue,
        )
        for one in stretches
    ]


async def rows(deps: Deps, query: str) -> list[tuple[Any, ...]]:
    async with deps.database.connection() as connection:
        return [tuple(row) for row in await connection.fetch(query)]


async def events(deps: Deps) -> list[tuple[Any, ...]]:
    return await rows(deps, "SELECT kind, tier, next_tier FROM subscription_events ORDER BY at")


async def subscribed(deps: Deps, at: datetime) -> Subscribed:
    async with deps.database.connection() as connection:
        return (await subscribed_of(connection, [USER.id], at=at))[USER.id]


async def test_a_user_on_the_tier_that_it_was_made_on_has_no_row(deps: Deps, put: Any):
    await put(START)
    await put(days(3), timezone="Europe/Berlin")

    assert await rows(deps, "SELECT * FROM subscriptions") == []
    assert await history(deps) == [("free", "active", 0, None, None, 0)]


async def test_a_user_that_is_made_on_a_tier_begins_there(deps: Deps, put: Any):
    await put(START, tier="pro", revenue=Decimal(5))

    assert await history(deps) == [("pro", "active", 0, None, None, 5)]
    assert await events(deps) == []


async def test_each_change_of_tier_ends_a_stretch_and_begins_the_next(deps: Deps, put: Any):
    await put(START)
    await put(days(1), tier="plus", until=date(2025, 3, 31))
    await put(days(2), tier="pro")
    await put(days(3), tier="free")

    assert await history(deps) == [
        ("free", "ended", 0, 1, None, 0),
        ("plus", "ended", 1, 2, 31, 0),
        ("pro", "canceled", 2, 3, None, 0),
        ("free", "active", 3, None, None, 0),
    ]
    assert await events(deps) == [
        ("ended", "free", "plus"), ("ended", "plus", "pro"), ("canceled", "pro", "free"),
    ]  # fmt: skip


async def test_the_same_change_twice_changes_nothing_twice(deps: Deps, put: Any):
    await put(START)
    for at in (days(1), days(2)):
        await put(at, tier="pro", until=date(2025, 3, 31), revenue=Decimal("9.99"))

    assert await history(deps) == [
        ("free", "ended", 0, 1, None, 0),
        ("pro", "active", 1, None, 31, Decimal("9.99")),
    ]
    assert len(await events(deps)) == 1


async def test_a_renewal_prolongs_and_adds_its_revenue_once(deps: Deps, put: Any):
    await put(START, tier="pro", until=date(2025, 3, 31), revenue=Decimal(10))
    for at in (days(30), days(30.5)):
        await put(at, tier="pro", until=date(2025, 4, 30), revenue=Decimal(12))
    await put(days(31), revenue=Decimal("12.50"))  # what the running term brings in, corrected

    assert await history(deps) == [("pro", "active", 0, None, 61, Decimal("22.50"))]


async def test_a_renewal_without_a_tier_or_for_ever_prolongs_what_runs(deps: Deps, put: Any):
    await put(START, tier="pro", until=date(2025, 3, 31), revenue=Decimal(10))
    await put(days(30), until=days(40))
    assert (await history(deps))[-1] == ("pro", "active", 0, None, 40, 10)

    await put(days(31), until="never", revenue=Decimal(90))
    await put(days(32), tier="pro")

    assert await history(deps) == [("pro", "active", 0, None, None, 100)]


async def test_a_day_ends_in_the_time_zone_that_the_user_has_then(deps: Deps, put: Any):
    await put(START, tier="pro", until=date(2025, 3, 30), timezone="Europe/Berlin")

    [(*_, ends, _)] = await history(deps)
    assert START + timedelta(days=ends) == datetime(2025, 3, 30, 22, tzinfo=UTC)  # of 23 hours


async def test_a_renewal_after_the_end_prolongs_what_nobody_has_ended(deps: Deps, put: Any):
    await put(START, tier="pro", until=days(10))
    await put(days(10.1), tier="pro", until=days(20))

    assert await history(deps) == [("pro", "active", 0, None, 20, 0)]


async def test_the_tier_alone_begins_anew_after_the_end(deps: Deps, put: Any):
    await put(START, tier="pro", until=days(10))
    await put(days(10), tier="pro")

    assert await history(deps) == [
        ("pro", "expired", 0, 10, 10, 0), ("pro", "active", 10, None, None, 0),
    ]  # fmt: skip
    assert await events(deps) == [("expired", "pro", "pro")]


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("until", {"tier": "pro", "until": START}),
        ("until", {"tier": "pro", "until": date(2025, 2, 28)}),
        ("until", {"tier": "pro", "until": date(9999, 12, 31)}),
        ("until", {"until": days(9)}),  # the default tier has no end
        ("until", {"tier": "free", "until": days(9)}),
        ("revenue", {"tier": "pro", "until": days(40), "revenue": Decimal("99999999.99")}),
    ],
)
async def test_a_wrong_value_is_refused_by_its_name_and_nothing_changes(
    deps: Deps, put: Any, field: str, wrong: dict[str, Any]
):
    await put(START, revenue=Decimal(1))
    if field == "revenue":
        await put(START, tier="pro", until=days(9), revenue=Decimal("0.01"))
    before = await history(deps)

    with pytest.raises(InvalidValueError) as caught:
        await put(START, **wrong)

    assert caught.value.field == field
    assert await history(deps) == before


async def test_changes_at_once_leave_one_stretch_running(deps: Deps, put: Any):
    await put(START)

    await asyncio.gather(*(put(days(1), tier=tier) for tier in ("pro", "plus", "pro", "plus")))

    found = await history(deps)
    assert [status for _, status, *_ in found].count("active") == 1
    [(tier,)] = await rows(deps, "SELECT tier FROM users")
    assert found[-1][:2] == (tier, "active")


async def test_two_stretches_can_not_run_whoever_writes(deps: Deps, put: Any):
    await put(START, tier="pro")

    with pytest.raises(asyncpg.UniqueViolationError):
        await rows(
            deps,
            "INSERT INTO subscriptions (user_id, tier, started_at)"
            " SELECT user_id, tier, started_at FROM subscriptions",
        )


async def test_a_user_that_is_moved_while_it_stands_still_has_its_stretch(deps: Deps, rules: Rules):
    async def settle() -> None:
        await deps.drain.run(seconds_max=5)

    stores = Stores(deps.database, deps.redis, deps.keys, settle=settle)
    await deps.quota.record("user-1", "seconds", 3, now=START)
    await move_user(stores, USER, rules, at=days(1), tier="pro", until=days(9))

    assert await history(deps) == [
        ("free", "ended", 0, 1, None, 0), ("pro", "active", 1, None, 9, 0),
    ]  # fmt: skip
    assert (await deps.quota.balance("user-1", now=days(1))).tier == "pro"


async def test_whole_months_of_each_unbroken_time_are_added_up(deps: Deps, put: Any):
    await put(START)
    await put(datetime(2026, 1, 31, tzinfo=UTC), tier="plus", revenue=Decimal("5.50"))
    assert (await subscribed(deps, datetime(2026, 2, 27, tzinfo=UTC))).months_subscribed == 0
    assert (await subscribed(deps, datetime(2026, 2, 28, tzinfo=UTC))).months_subscribed == 1

    await put(datetime(2026, 3, 20, tzinfo=UTC), tier="pro", revenue=Decimal(20))  # no break
    assert (await subscribed(deps, datetime(2026, 3, 31, tzinfo=UTC))).months_subscribed == 2
    await put(datetime(2026, 4, 29, tzinfo=UTC), tier="free")
    await put(datetime(2026, 6, 1, tzinfo=UTC), tier="plus", until=date(2026, 6, 30))

    found = await subscribed(deps, datetime(2027, 1, 1, tzinfo=UTC))  # over, though nobody looked
    assert found == Subscribed(3, Decimal("25.50"), "pro")


@pytest.mark.parametrize(
    ("zone", "began", "last", "months"),
    [
        ("UTC", datetime(2025, 3, 1, 10, tzinfo=UTC), date(2025, 3, 31), 1),
        ("America/New_York", datetime(2025, 3, 1, 15, tzinfo=UTC), date(2025, 3, 31), 1),
        ("CET", datetime(2025, 6, 30, 22, tzinfo=UTC), date(2025, 7, 31), 1),
        ("UTC", datetime(2025, 3, 1, 10, tzinfo=UTC), date(2025, 3, 30), 0),
        ("UTC", datetime(2025, 1, 31, 10, tzinfo=UTC), date(2025, 2, 27), 1),
    ],
)
async def test_months_are_those_of_the_users_days(
    deps: Deps, put: Any, zone: str, began: datetime, last: date, months: int
):
    await put(began, timezone=zone)
    await put(began, tier="pro", until=last)

    assert (await subscribed(deps, began + timedelta(days=300))).months_subscribed == months


@pytest.mark.parametrize("late", [timedelta(0), timedelta(minutes=1), timedelta(hours=30)])
async def test_who_pays_again_within_a_day_has_paid_without_a_break(
    deps: Deps, put: Any, late: timedelta
):
    await put(START)
    began = START + timedelta(hours=10)
    for month in range(3, 13):
        await put(began, tier="pro", until=date(2025, month, 28))
        ends = datetime(2025, month, 29, tzinfo=UTC)
        await put(ends, tier="free")
        began = ends + late

    whole = (await subscribed(deps, began)).months_subscribed
    assert whole == 9  # from 1 March to 29 December


async def test_the_highest_tier_follows_the_order_of_the_file_above_the_default(
    deps: Deps, put: Any, apply_tiers: Any
):
    await put(START)
    assert await subscribed(deps, START) == Subscribed(0, Decimal(0), "free")
    await put(days(1), tier="pro")
    await put(days(2), tier="plus")
    assert (await subscribed(deps, days(3))).highest_tier_reached == "pro"

    upside_down = {"default_tier": "free", "tiers": {"pro": ANY, "plus": ANY, "free": ANY}}
    await apply_tiers(deps, upside_down)

    assert (await subscribed(deps, days(3))).highest_tier_reached == "plus"


async def test_another_default_tier_changes_nothing_of_what_was(
    deps: Deps, put: Any, apply_tiers: Any
):
    await put(START)
    await put(days(1), tier="pro")
    await put(days(70), tier="free")
    async with deps.database.connection() as connection:
        await connection.execute("UPDATE tiers SET applied_at = $1", days(-100))

    await apply_tiers(deps, {**TIERS, "default_tier": "plus"})

    assert (await subscribed(deps, days(365))).months_subscribed == 2


async def test_verify_finds_a_tier_that_is_not_the_one_that_runs_and_a_gap(
    deps: Deps, put: Any, rules: Rules
):
    await put(START)
    await put(days(1), tier="pro")
    verifier = Verifier(deps.database, rules, shards=deps.settings.shards, grace_ms=0, fix=True)
    assert (await verifier.run()).found == 0

    await rows(deps, "UPDATE users SET tier = 'free'")
    await rows(
        deps,
        "UPDATE subscriptions SET ended_at = ended_at - interval '1 day'"
        " WHERE ended_at IS NOT NULL",
    )
    report = await verifier.run()

    told = {
        (one.difference.figure, one.difference.stored, one.difference.expected)
        for one in report.findings
    }
    assert told == {("users.tier", "free", "pro"), ("subscriptions.gaps", 1, 0)}
    assert report.remaining == 2
    await put(days(2), tier="pro")  # as the user is to be
    assert (await verifier.run()).by_figure == {"subscriptions.gaps": 1}


async def test_verify_finds_that_nothing_runs(deps: Deps, put: Any, rules: Rules):
    await put(START, tier="pro")
    await rows(deps, "UPDATE subscriptions SET status = 'ended', ended_at = now()")

    verifier = Verifier(deps.database, rules, shards=deps.settings.shards, grace_ms=0)
    assert (await verifier.run()).by_figure == {"subscriptions.running": 1}


async def test_the_look_for_what_is_over_uses_its_index(deps: Deps, rules: Rules):
    async with deps.database.connection() as connection:
        await connection.execute(
            """
            WITH made AS (
                INSERT INTO users (id, tier, created_at)
                SELECT gen_random_uuid(), 'pro', $1 FROM generate_series(1, 3000) RETURNING id
            )
            INSERT INTO subscriptions (user_id, tier, started_at, ends_at)
            SELECT id, 'pro', $1, $1 + interval '30 days' FROM made
            """,
            START,
        )
        await connection.execute("ANALYZE users, subscriptions")
        plan = await connection.fetch(
            "EXPLAIN " + statement("worker", "due_subscriptions"),
            days(1),
            None,
            None,
            100,
            [],
            False,
        )
    assert "idx_subscriptions_due" in "\n".join(row[0] for row in plan)


async def stats(deps: Deps) -> list[tuple[Any, ...]]:
    return await rows(
        deps,
        "SELECT months_subscribed, total_revenue, highest_tier_reached FROM user_lifetime_stats",
    )


async def test_what_stretches_come_to_is_stored_when_it_changes_and_once_a_day(
    deps: Deps, put: Any
):
    await put(START)
    await put(START, tier="pro", revenue=Decimal(5))
    assert await store_subscribed(deps.database, at=days(1), seconds_max=5) == 1
    assert await stats(deps) == [(0, Decimal(5), "pro")]

    await put(days(1), revenue=Decimal(7))
    assert await store_subscribed(deps.database, at=days(1.1), seconds_max=5) == 1
    assert await stats(deps) == [(0, Decimal(7), "pro")]

    assert await store_subscribed(deps.database, at=days(1.5), seconds_max=5) == 0
    assert await store_subscribed(deps.database, at=days(32), seconds_max=5) == 1
    assert await stats(deps) == [(1, Decimal(7), "pro")]


async def test_a_lifetime_has_its_months_as_of_when_it_is_asked_for(deps: Deps, put: Any):
    await put(START, tier="pro", revenue=Decimal(5))
    await deps.quota.record("user-1", "conversations", 1, now=days(1))
    await deps.drain.run(seconds_max=5)
    await fold_all(deps.database, seconds_max=5)

    async with deps.database.connection() as connection:
        found = await lifetime_of(connection, USER.id, at=days(62))

    assert found is not None
    assert (found["months_subscribed"], found["highest_tier_reached"]) == (2, "pro")
    assert (found["total_revenue"], found["total_conversations"]) == (5, 1)


async def test_what_stretches_come_to_is_stored_beside_folds(deps: Deps, put: Any):
    await put(START, tier="pro")
    for number in range(20):
        await deps.quota.record("user-1", "conversations", 1, now=days(1), key=f"k-{number}")
        await deps.drain.run(seconds_max=5)
        await put(days(2), revenue=Decimal(number))
        await asyncio.gather(
            fold_all(deps.database, seconds_max=5),
            store_subscribed(deps.database, at=days(3), seconds_max=5),
        )

    await store_subscribed(deps.database, at=days(3), seconds_max=5)
    await fold_all(deps.database, seconds_max=5)
    assert await stats(deps) == [(0, Decimal(19), "pro")]
    assert await rows(deps, "SELECT total_conversations FROM user_lifetime_stats") == [(20,)]


async def test_what_is_stored_of_stretches_is_verified_as_of_when_it_was_counted(
    deps: Deps, put: Any
):
    await rows(deps, "UPDATE tiers SET applied_at = '2020-01-01'")
    await put(START, tier="pro", revenue=Decimal(5))
    await store_subscribed(deps.database, at=days(62), seconds_max=5)

    async def found(*, fix: bool = False) -> set[str]:
        report = Report()
        await verify_rollups(deps.database, report, fix=fix)
        return set(report.by_figure)

    assert await found() == set()  # more months have gone by since
    await rows(deps, "UPDATE user_lifetime_stats SET months_subscribed = 7, total_revenue = 9")
    wrong = {"user_lifetime_stats.months_subscribed", "user_lifetime_stats.total_revenue"}
    assert await found(fix=True) == wrong
    assert await stats(deps) == [(2, Decimal(5), "pro")]

    await put(days(70), revenue=Decimal(6))  # not counted yet
    assert await found() == set()
    await rows(deps, "UPDATE subscriptions SET counted_at = '2025-05-02'")
    await rows(deps, "UPDATE user_lifetime_stats SET highest_tier_reached = 'free'")
    await rebuild(deps.database)
    assert await stats(deps) == [(2, Decimal(6), "pro")]


async def test_users_of_before_are_taken_for_made_on_their_tier(empty_url: str):
    await upgrade(empty_url, "0004")
    connection = await asyncpg.connect(empty_url)
    await connection.execute(
        """
        INSERT INTO tiers (version, name, is_default, allowance_micro, thresholds) VALUES
            (1, 'pro', false, 500, '{}'), (1, 'free', true, 20, '{}'), (1, 'plus', false, 90, '{}');
        INSERT INTO users (id, tier, created_at) VALUES
            (repeat('1', 32)::uuid, 'free', '2025-01-01Z'), (repeat('2', 32)::uuid, 'pro', '2025-01-02Z');
        """
    )

    await upgrade(empty_url)

    made = await connection.fetch(
        "SELECT tier, started_at = '2025-01-02Z', status FROM subscriptions"
    )
    order = await connection.fetch("SELECT name FROM tiers ORDER BY position")
    await connection.close()
    assert [tuple(row) for row in made] == [("pro", True, "active")]
    assert [name for (name,) in order] == ["free", "plus", "pro"]
