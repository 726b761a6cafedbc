"""What plain SQL counts is counted everywhere: in every table, in Redis, once, whoever else is at it."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from redis.asyncio import Redis

from quota.period import Calendar, window_at
from quota.values import instant_ms, instant_of, parse_user_id, uuid7_time_ms
from service.loading import DatabaseLoader
from service.rollups import fold_all
from service.staleness import drop_stale_users
from service.tiers import stored_rules
from service.users import put_user
from service.verify import Verifier
from tests.integration.stacks import Real
from worker.deps import Deps

USER = parse_user_id("user-1")
CALLS = 30
TIERS: dict[str, Any] = {
    "default_tier": "free",
    "features": {"event": {"price": "3"}},
    "tiers": {
        "free": {
            "limits": {
                "event": [{"max": 100, "per": "day"}, {"max": 60, "per": "window:3600"}],
                "*": {"max": 1000, "per": "month"},
            }
        }
    },
}


@pytest.fixture
async def real(deps: Deps, apply_tiers: Any) -> Real:
    await apply_tiers(deps, TIERS)
    return Real(deps)


@pytest.fixture
async def unpriced(deps: Deps, apply_tiers: Any) -> Real:
    await apply_tiers(deps, {**TIERS, "features": {}})
    return Real(deps)


async def sql(deps: Deps, query: str, *arguments: Any) -> list[Any]:
    async with deps.database.connection() as connection:
        return list(await connection.fetch(query, *arguments))


async def increment(
    deps: Deps, feature: str = "event", amount: int = 1, user: UUID = USER.id
) -> int:
    rows = await sql(deps, "SELECT increment_feature_usage($1, $2, $3)", user, feature, amount)
    return int(rows[0][0])


async def used(deps: Deps, feature: str = "event", user: str = "user-1") -> dict[str, int]:
    """What the next decision goes by, once Redis has dropped whoever changed."""
    await drop_stale_users(deps.database, deps.redis, deps.keys)
    decision = await deps.quota.check(user, feature)
    return {limit.per: limit.used for limit in decision.limits}


async def wrong(deps: Deps, *, at: datetime | None = None) -> list[Any]:
    """What `allotment verify` finds."""
    verifier = Verifier(
        deps.database,
        await stored_rules(deps.database),
        shards=len(deps.keys.shards),
        grace_ms=3_600_000,
        at=at,
    )
    return (await verifier.run()).findings


async def test_it_answers_the_units_ever_used_and_reaches_every_table_and_redis(real: Real):
    deps = real.deps
    await deps.quota.record("user-1", "event", 5)
    await real.apply()

    totals = [await increment(deps, amount=3), await increment(deps, amount=4)]

    assert totals == [8, 12]
    assert await used(deps) == {"day": 12, "window:3600": 12}
    (log,) = await sql(
        deps, "SELECT sum(amount) AS units, sum(credits_consumed) AS credits FROM usage_logs"
    )
    assert (log["units"], log["credits"]) == (12, 15)  # only what was recorded has cost something
    (counter,) = await sql(deps, "SELECT * FROM usage_counters")
    assert {
        counter[f"{per}_used"]
        for per in ("hour", "day", "week", "month", "year", "cycle", "lifetime")
    } == {12}
    assert await wrong(deps) == []


async def test_the_counters_begin_where_the_users_calendar_says(real: Real):
    deps, anchor = real.deps, datetime(2024, 1, 31, 20, 15, tzinfo=UTC)
    async with deps.database.session() as session:
        rules = await stored_rules(deps.database)
        assert rules is not None
        await put_user(
            session, USER, rules, timezone="Australia/Lord_Howe", anchor=anchor, cycle_months=3
        )

    await increment(deps)

    calendar = Calendar("Australia/Lord_Howe", instant_ms(anchor), 3)
    (row,) = await sql(
        deps, "SELECT c.*, l.created_at FROM usage_counters c JOIN usage_logs l USING (user_id)"
    )
    at_ms = instant_ms(row["created_at"])
    for per in ("hour", "day", "week", "month", "year", "cycle"):
        assert row[f"{per}_start"] == instant_of(window_at(per, at_ms, calendar).start_ms), per


async def test_a_period_that_is_over_starts_over(real: Real):
    deps = real.deps
    await increment(deps, amount=7)
    await sql(
        deps,
        """
        UPDATE usage_counters
        SET day_start = day_start - interval '1 day', month_start = month_start - interval '32 days'
        """,
    )

    await increment(deps, amount=2)

    (row,) = await sql(
        deps, "SELECT day_used, week_used, month_used, lifetime_used FROM usage_counters"
    )
    assert tuple(row) == (2, 9, 2, 9)


async def test_a_user_who_is_not_there_is_made_on_the_default_tier(real: Real):
    user = uuid4()

    assert await increment(real.deps, user=user) == 1

    (row,) = await sql(
        real.deps, "SELECT tier, timezone, cycle_months FROM users WHERE id = $1", user
    )
    assert tuple(row) == ("free", "UTC", 1)
    assert await used(real.deps, user=str(user)) == {"day": 1, "window:3600": 1}


async def test_without_tiers_there_is_no_default_tier_and_it_says_so(database_url: str):
    connection = await asyncpg.connect(database_url)

    with pytest.raises(asyncpg.ObjectNotInPrerequisiteStateError, match="no tiers yet"):
        await connection.fetchval("SELECT increment_feature_usage($1, 'event')", USER.id)
    await connection.close()


async def test_no_limit_denies_it_and_what_it_counts_denies_the_next(real: Real):
    await increment(real.deps, amount=500)

    await drop_stale_users(real.deps.database, real.deps.redis, real.deps.keys)
    decision = await real.deps.quota.consume("user-1", "event", 1)

    assert decision.code == "limit_exceeded"
    assert decision.used == 500


async def test_its_record_can_be_refunded_by_its_id(real: Real):
    deps = real.deps
    await increment(deps, amount=6)
    (row,) = await sql(deps, "SELECT id, created_at FROM usage_logs")
    assert uuid7_time_ms(str(row["id"])) == instant_ms(row["created_at"])

    refund = await real.refund("user-1", now=datetime.now(UTC), key=str(row["id"]), amount=2)

    assert refund.amount == 2
    assert await used(deps) == {"day": 4, "window:3600": 4}
    assert await wrong(deps) == []


async def test_metadata_of_the_latest_use_stays_and_none_keeps_what_there_is(real: Real):
    query = "SELECT increment_feature_usage($1, 'event', metadata => $2::jsonb)"
    await sql(real.deps, query, USER.id, '{"a": 1}')
    await sql(real.deps, query, USER.id, '{"b": {"c": [1]}}')
    await sql(real.deps, query, USER.id, None)

    rows = await sql(real.deps, "SELECT metadata::text, usage_count, last_used FROM feature_usage")

    assert [(row["metadata"], row["usage_count"]) for row in rows] == [('{"b": {"c": [1]}}', 3)]
    logged = await sql(real.deps, "SELECT max(created_at) AS last FROM usage_logs")
    assert rows[0]["last_used"] == logged[0]["last"]


async def test_what_the_edge_refuses_is_refused_here_and_nothing_is_counted(real: Real):
    deep, long = '{"a":' * 9 + "1" + "}" * 9, f'{{"a": "{"x" * 16384}"}}'
    connection = await asyncpg.connect(real.deps.settings.asyncpg_dsn)
    refused: dict[str, list[Any]] = {
        "user_id": [None],
        "feature": [None, "", "Event", "1event", "a b", "é", "event\n", "a" * 101],
        "amount": [None, 0, -1, 2**53],
        "metadata": ["null", "[1]", '"text"', deep, long],
    }
    for field, values in refused.items():
        for value in values:
            given = {
                "user_id": USER.id,
                "feature": "event",
                "amount": 1,
                "metadata": None,
                field: value,
            }
            with pytest.raises(asyncpg.InvalidParameterValueError, match=f"^{field}: expected"):
                await connection.execute(
                    "SELECT increment_feature_usage($1, $2, $3, $4::jsonb)", *given.values()
                )
    await connection.close()

    assert await sql(real.deps, "SELECT FROM users") == []


async def test_eight_levels_are_taken(real: Real):
    deep = '{"a":' * 8 + "1" + "}" * 8

    await sql(real.deps, "SELECT increment_feature_usage($1, 'event', 1, $2::jsonb)", USER.id, deep)


async def test_many_at_once_lose_nothing_and_open_one_window(real: Real):
    deps = real.deps
    async with asyncio.TaskGroup() as group:
        for _ in range(CALLS):
            group.create_task(increment(deps, amount=2))

    assert await used(deps) == {"day": 2 * CALLS, "window:3600": 2 * CALLS}
    (row,) = await sql(
        deps, "SELECT usage_count, (SELECT count(*) FROM usage_windows) FROM feature_usage"
    )
    assert tuple(row) == (2 * CALLS, 1)
    assert await wrong(deps) == []


async def test_while_users_are_served_and_applied_nothing_is_lost_or_doubled(real: Real):
    deps, over = real.deps, asyncio.Event()
    calls = 0

    async def serve() -> None:
        nonlocal calls
        while not over.is_set():
            await deps.quota.record("user-1", "event", 1)
            calls += 1

    async def drop() -> None:
        while not over.is_set():
            await drop_stale_users(deps.database, deps.redis, deps.keys)

    async def apply() -> None:
        while not over.is_set():
            await deps.drain.run(seconds_max=1)
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        for work in (serve, serve, drop, apply):
            group.create_task(work())
        for _ in range(CALLS):
            await increment(deps)
        over.set()

    expected = calls + CALLS
    served = await used(deps)
    await real.apply()
    (row,) = await sql(deps, "SELECT usage_count FROM feature_usage")
    assert served["day"] == row["usage_count"] == expected
    assert (await used(deps))["day"] == expected
    assert await wrong(deps) == []


async def test_a_window_that_redis_opened_and_nobody_applied_is_one_with_that_of_sql(
    unpriced: Real,
):
    deps = unpriced.deps
    await deps.quota.consume("user-1", "event", 50)
    await increment(deps, amount=5)
    before = await used(deps)
    await unpriced.apply()
    await unpriced.forget("user-1")  # what is asked now is what PostgreSQL has

    decision = await deps.quota.consume("user-1", "event", 6)

    assert before == await used(deps) == {"day": 55, "window:3600": 55}
    assert decision.code == "limit_exceeded"
    assert (decision.used, decision.limit) == (55, 60)
    assert await wrong(deps) == []


async def test_a_window_that_redis_opens_before_it_hears_of_that_of_sql_is_one_with_it(
    unpriced: Real,
):
    deps = unpriced.deps
    await deps.quota.check("user-1", "event")  # Redis has the user
    await increment(deps, amount=5)
    await deps.quota.consume("user-1", "event", 40)

    waiting = await used(deps)
    await unpriced.apply()
    await unpriced.forget("user-1")

    assert waiting == await used(deps) == {"day": 45, "window:3600": 45}
    assert await wrong(deps) == []


@pytest.mark.parametrize("applied", ["first", "before the end", "after the end"])
async def test_what_comes_back_of_a_hold_leaves_the_window_that_both_have_become(
    unpriced: Real, applied: str
):
    deps = unpriced.deps
    await deps.quota.check("user-1", "event")
    if applied == "before the end":
        await increment(deps, amount=5)
    await deps.quota.reserve("user-1", "event", 30, key="hold")
    if applied == "first":
        await unpriced.apply()
    if applied != "before the end":
        await increment(deps, amount=5)
    assert await used(deps) == {"day": 35, "window:3600": 35}
    if applied == "before the end":
        await unpriced.apply()
    await deps.quota.commit("user-1", "hold", 10)

    served = {one.per: one.used for one in (await deps.quota.check("user-1", "event")).limits}
    await unpriced.apply()

    assert served == {"day": 15, "window:3600": 15}
    await unpriced.forget("user-1")
    assert await used(deps) == {"day": 15, "window:3600": 15}
    assert await wrong(deps) == []


async def test_a_window_that_redis_went_on_with_after_its_end_is_no_finding(unpriced: Real):
    deps, at = unpriced.deps, datetime.now(UTC)
    await deps.quota.check("user-1", "event")
    await increment(deps, amount=5)
    for minutes in (30, 70):  # no worker has come round to tell Redis
        await deps.quota.consume("user-1", "event", 10, now=at + timedelta(minutes=minutes))
    await unpriced.apply()

    found = await wrong(deps, at=at + timedelta(minutes=71))

    (row,) = await sql(deps, "SELECT used FROM usage_windows")
    assert row["used"] == 25
    assert [one for one in found if one.difference.figure.startswith("usage_windows")] == []


async def test_runs_with_several_windows_of_a_user_are_written_one_after_the_other(unpriced: Real):
    """As does a log in which Redis had opened a window, was told of that of SQL, and opened the next."""
    deps, at = unpriced.deps, datetime.now(UTC)
    await deps.quota.consume("user-1", "event", 10, now=at)
    await increment(deps, amount=5)
    await used(deps)
    await deps.quota.consume("user-1", "event", 7, now=at + timedelta(hours=1, seconds=1))
    await deps.quota.consume("user-1", "event", 8, now=at + timedelta(hours=2, seconds=2))

    await unpriced.apply()

    (row,) = await sql(deps, "SELECT used, ends_at FROM usage_windows")
    assert row["used"] == 8
    assert row["ends_at"] == instant_of(instant_ms(at)) + timedelta(hours=3, seconds=2)


class StoppingRedis(Redis):
    """A real client that stops a load between its snapshot of PostgreSQL and its install."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.has_read = asyncio.Event()
        self.go_on = asyncio.Event()

    def pipeline(self, *args: Any, **kwargs: Any) -> Any:
        """What the log has behind the snapshot is fetched by one."""
        pipe = super().pipeline(*args, **kwargs)
        execute = pipe.execute

        async def stopped(*of: Any, **how: Any) -> Any:
            self.has_read.set()
            await self.go_on.wait()
            return await execute(*of, **how)

        pipe.execute = stopped  # type: ignore[method-assign]
        return pipe


async def test_a_load_that_has_read_the_user_before_the_commit_is_not_installed(real: Real):
    deps = real.deps
    await deps.quota.record("user-1", "event", 1)
    await real.apply()
    await deps.quota.record("user-1", "event", 4)  # in the log still
    await real.forget("user-1")
    shard = deps.keys.shard_of(USER.id)
    async with StoppingRedis.from_url(deps.settings.quota_redis) as redis:
        loader = DatabaseLoader(deps.database, redis, auto_provision=True, dedupe_ms=86_400_000)
        load = asyncio.create_task(loader.load(deps.keys, USER, now_ms=0))
        await redis.has_read.wait()

        await increment(deps, amount=10)
        await drop_stale_users(deps.database, deps.redis, deps.keys)
        redis.go_on.set()
        await load

    assert not await deps.redis.exists(shard.user_of(USER.id.hex))
    assert (await used(deps))["day"] == 15


async def test_a_load_before_the_commit_has_none_of_it_and_is_dropped_after_it(real: Real):
    deps = real.deps
    await deps.quota.record("user-1", "event", 1)
    await real.apply()
    await real.forget("user-1")
    connection = await asyncpg.connect(deps.settings.asyncpg_dsn)
    async with connection.transaction():
        await connection.fetchval("SELECT increment_feature_usage($1, 'event', 10)", USER.id)
        before = await used(deps)
    await connection.close()

    assert before["day"] == 1
    assert (await used(deps))["day"] == 11


async def test_a_user_who_moves_to_another_zone_meanwhile_is_counted_in_the_new_one(real: Real):
    """The call waits for the move: counted by the old calendar, the counters would begin at no boundary."""
    deps = real.deps
    await increment(deps)
    observer = await asyncpg.connect(deps.settings.asyncpg_dsn)
    async with deps.database.session() as session:
        rules = await stored_rules(deps.database)
        assert rules is not None
        await put_user(session, USER, rules, timezone="Asia/Kathmandu")
        await session.flush()
        waiting = asyncio.create_task(increment(deps))
        while not await observer.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
            pass
    await waiting
    await observer.close()

    assert (await used(deps))["day"] == 2
    assert await wrong(deps) == []


async def test_a_call_that_is_rolled_back_has_counted_nothing(real: Real):
    deps = real.deps
    with pytest.raises(asyncpg.DivisionByZeroError):
        await sql(deps, "SELECT increment_feature_usage($1, 'event'), 1 / (SELECT 0)", USER.id)

    for table in (
        "users",
        "usage_logs",
        "feature_usage",
        "usage_counters",
        "usage_windows",
        "stale_users",
    ):
        assert await sql(deps, f"SELECT FROM {table}") == []


async def test_the_rollups_have_each_of_several_of_one_transaction(real: Real):
    """They know the rows of a run by its transaction: several runs of one must not find each other's."""
    deps = real.deps
    async with deps.database.connection() as connection, connection.transaction():
        await connection.execute("SELECT increment_feature_usage($1, 'event', 2)", USER.id)
        with contextlib.suppress(asyncpg.DivisionByZeroError):
            async with connection.transaction():
                await connection.execute("SELECT increment_feature_usage($1, 'event', 40)", USER.id)
                await connection.execute("SELECT 1 / 0")
        async with connection.transaction():
            await connection.execute(
                "SELECT increment_feature_usage($1, f, 3) FROM unnest(ARRAY['event', 'other']) f",
                USER.id,
            )

    await fold_all(deps.database, seconds_max=60)

    rows = await sql(deps, "SELECT action, uses, units, credits FROM usage_daily ORDER BY 1")
    assert [tuple(row) for row in rows] == [("event", 2, 5, 0), ("other", 1, 3, 0)]
    assert await sql(deps, "SELECT FROM usage_runs") == []


async def test_counting_by_hand_moves_the_last_use_and_the_service_says_its_own(real: Real):
    deps = real.deps
    long_ago = datetime(2025, 1, 1, tzinfo=UTC)
    await deps.quota.record("user-1", "event", 1)
    await real.apply()
    (first,) = await sql(deps, "SELECT last_used FROM feature_usage")
    await deps.quota.record("user-1", "event", 1, occurred_at=long_ago)
    await real.apply()
    (late,) = await sql(deps, "SELECT last_used FROM feature_usage")

    await sql(deps, "UPDATE feature_usage SET usage_count = usage_count + 1")
    (by_hand,) = await sql(deps, "SELECT last_used FROM feature_usage")
    await sql(
        deps, "UPDATE feature_usage SET usage_count = usage_count - 1, last_used = $1", long_ago
    )
    (set_back,) = await sql(deps, "SELECT last_used FROM feature_usage")

    assert late == first
    assert by_hand["last_used"] > first["last_used"]
    assert set_back["last_used"] == long_ago


async def test_the_stats_are_of_the_periods_that_run(real: Real):
    deps = real.deps
    await deps.quota.record("user-1", {"event": 30, "other": 7})
    await real.apply()

    rows = {
        (row["feature"], row["per"]): row
        for row in await sql(deps, "SELECT * FROM get_current_usage_stats($1)", USER.id)
    }

    assert rows.keys() == {("event", "day"), ("event", "window:3600"), ("other", "month")}
    day, window, other = (rows[key] for key in rows)
    assert (day["used"], day["limit"], day["mode"], float(day["percent"])) == (
        30,
        100,
        "hard",
        30.0,
    )
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    assert day["resets_at"] - midnight in (timedelta(0), timedelta(days=1))
    assert (window["used"], float(window["percent"])) == (30, 50.0)
    assert (other["used"], other["limit"], other["usage_count"]) == (7, 1000, 7)
    assert day["last_used"] is not None
    (counter,) = await sql(deps, "SELECT user_id FROM usage_counters WHERE feature = 'event'")
    await sql(deps, "UPDATE usage_counters SET day_start = day_start - interval '1 day'")
    await sql(deps, "UPDATE usage_windows SET ends_at = now()")
    over = await sql(
        deps,
        "SELECT used, resets_at FROM get_current_usage_stats($1) WHERE feature = 'event'",
        counter[0],
    )
    assert [row["used"] for row in over] == [0, 0]
    assert over[1]["resets_at"] is None


async def test_the_stats_of_a_stranger_are_none(real: Real):
    assert await sql(real.deps, "SELECT * FROM get_current_usage_stats($1)", uuid4()) == []


async def test_users_near_their_limits_are_seen_while_the_period_runs(real: Real, apply_tiers: Any):
    deps = real.deps
    tiers = {
        "default_tier": "free",
        "tiers": {
            "free": {
                "limits": {
                    "event": [{"max": 100, "per": "day"}, {"max": 60, "per": "window:3600"}],
                    "none": {"max": 0, "per": "month"},
                    "open": {"max": "unlimited", "per": "year"},
                    "*": {"max": 1000, "per": "month"},
                },
                "alerts": {"thresholds": [50, 90]},
            },
            "pro": {
                "limits": {"*": {"max": 100, "per": "lifetime"}},
                "alerts": {"thresholds": [95]},
            },
        },
    }
    rules = await apply_tiers(deps, tiers)
    async with deps.database.session() as session:
        await put_user(session, parse_user_id("pro"), rules, tier="pro")
    # Half of the window, below half of the day; what is on the way to the limit of any feature.
    await deps.quota.record(
        "user-1", {"event": 30, "none": 1, "open": 10**6, "other": 500, "quiet": 499}
    )
    await deps.quota.record("pro", {"event": 79, "other": 80})
    await real.apply()

    rows = await sql(deps, "SELECT * FROM usage_alerts_view")

    near = {
        (row["feature"], row["per"]): (row["used"], row["limit"], row["percent"]) for row in rows
    }
    assert near == {
        ("event", "window:3600"): (30, 60, 50),
        ("none", "month"): (1, 0, None),
        ("other", "month"): (500, 1000, 50),
        ("other", "lifetime"): (80, 100, 80),
    }
    assert {row["resets_at"] is None for row in rows if row["per"] == "lifetime"} == {True}
    await sql(deps, "UPDATE usage_windows SET ends_at = now()")
    await sql(deps, "UPDATE usage_counters SET month_start = month_start - interval '1 month'")
    (left,) = await sql(deps, "SELECT feature, per FROM usage_alerts_view")
    assert tuple(left) == ("other", "lifetime")


async def test_events_have_the_names_of_the_seed(real: Real):
    deps = real.deps
    event: dict[str, Any] = {
        "event_id": "evt_12345", "event_type": "feature_used", "product_version": "2.4.1",
        "session_id": "sess_456", "metadata": {"duration_seconds": 45, "result": "success"},
    }  # fmt: skip
    await deps.quota.record("usr_789", "feature_recommendations", 1, **event)
    await deps.quota.record("usr_789", "event", 1, key="without-an-id")
    await real.apply()

    rows = await sql(deps, "SELECT * FROM feature_events ORDER BY feature_id DESC")

    assert list(rows[0].keys()) == [
        "event_id", "user_id", "feature_id", "product_version", "event_type", "timestamp", "session_id", "metadata",
    ]  # fmt: skip
    assert rows[0]["event_id"] == "evt_12345"
    assert rows[0]["user_id"] == parse_user_id("usr_789").id
    assert (rows[0]["feature_id"], rows[0]["product_version"]) == (
        "feature_recommendations",
        "2.4.1",
    )
    assert UUID(rows[1]["event_id"]).version == 7
