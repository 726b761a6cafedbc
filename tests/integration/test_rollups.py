"""Days, months and lifetimes: each record in each of them once, whatever happens while it is folded."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import asyncpg
import pytest

from quota.rules import Rules
from quota.values import parse_user_id
from service.changes import Stores
from service.lifetime import lifetime_of
from service.moves import move_user
from service.pace import Pace, RecountTooSlowError
from service.partitions import make_partitions
from service.refunds import refund
from service.rollups import Folded, RunsIncompleteError, fold_all, fold_once, rollup_lag
from service.tiers import stored_rules
from worker.deps import Deps
from worker.jobs import fold_usage

START = datetime(2025, 3, 1, 10, tzinfo=UTC)
TODAY = date(2025, 3, 31)
SINCE = TODAY - timedelta(days=30)
ZONES = ("UTC", "Asia/Tokyo", "America/Los_Angeles")
FEATURES = ("conversations", "seconds", "completed_sessions", "realtime_sessions", "anki_exports")
OPEN: dict[str, Any] = {
    "default_tier": "free",
    "features": {"seconds": {"price": "0.5"}, "image": {"price": "1", "format": {"video": "4"}}},
    "tiers": {
        "free": {
            "overdraft": True,
            "limits": {
                "*": {"max": "unlimited", "per": "lifetime"},
                "seconds": {"max": 1000, "per": "month", "mode": "soft"},
            },
        },
        "pro": {"overdraft": True, "limits": {"*": {"max": "unlimited", "per": "lifetime"}}},
    },
}


@pytest.fixture
async def on_open_tiers(deps: Deps, apply_tiers) -> Deps:
    await apply_tiers(deps, OPEN)
    await rows(deps, "UPDATE rollup_state SET window_since = $1", SINCE)  # it is of today
    await rows(deps, "UPDATE tiers SET applied_at = $1", START - timedelta(days=365))
    return deps


async def rules_of(deps: Deps) -> Rules:
    rules = await stored_rules(deps.database)
    assert rules is not None
    return rules


async def settle(deps: Deps) -> None:
    while await deps.drain.run(seconds_max=30):
        pass


async def fold(deps: Deps, today: date = TODAY) -> Folded:
    folded = await fold_all(deps.database, today=today, seconds_max=60)
    assert folded is not None
    return folded


async def record(deps: Deps, user: str, features: dict[str, int], at: datetime, **how: Any) -> None:
    await deps.quota.record(user, features, now=at, **how)


async def give_back(deps: Deps, user: str, key: str, amount: int | None, at: datetime) -> None:
    stores = Stores(deps.database, deps.redis, deps.keys, settle=lambda: settle(deps))
    await refund(stores, parse_user_id(user), await rules_of(deps), key, amount=amount, at=at)


async def move(deps: Deps, user: str, at: datetime, **changes: Any) -> None:
    stores = Stores(deps.database, deps.redis, deps.keys, settle=lambda: settle(deps))
    await move_user(stores, parse_user_id(user), await rules_of(deps), at=at, **changes)


async def rows(deps: Deps, query: str, *arguments: Any) -> list[Any]:
    async with deps.database.connection() as connection:
        return list(await connection.fetch(query, *arguments))


async def table(deps: Deps, query: str) -> dict[Any, Any]:
    """The rows of *query* by all columns but the last, which holds the figures."""
    return {tuple(row)[:-1]: row[-1] for row in await rows(deps, query)}


# -- what the log says, in plain Python --------------------------------------------------------


class Said:
    """Everything that the rollups should have, from `usage_logs`, `usage_refunds` and `users`."""

    def __init__(self) -> None:
        self.daily: dict[Any, list[Any]] = defaultdict(lambda: [0, 0, Decimal(0)])
        self.days: dict[tuple[UUID, date], int] = defaultdict(int)
        self.features: dict[tuple[UUID, date, str], list[int]] = defaultdict(lambda: [0, 0])
        self.sessions: dict[tuple[UUID, date], list[tuple[int, int]]] = defaultdict(list)
        self.instants: dict[tuple[UUID, date], list[datetime]] = defaultdict(list)

    @property
    def actions(self) -> dict[Any, list[Any]]:
        found: dict[Any, list[Any]] = defaultdict(lambda: [0, 0, Decimal(0)])
        for (_, day, action, _, _), figures in self.daily.items():
            found[day, action] = [a + b for a, b in zip(found[day, action], figures, strict=True)]
        return found

    def users_since(self, action: str, since: date) -> int:
        return len(
            {
                user
                for (user, day, name, _, _), (uses, *_) in self.daily.items()
                if name == action and day >= since and uses
            }
        )

    def window(self, since: date) -> dict[Any, list[Any]]:
        found: dict[Any, list[Any]] = defaultdict(lambda: [0, Decimal(0)])
        for (user, day, *_), (uses, _, spent) in self.daily.items():
            if day >= since:
                found[(user,)] = [found[(user,)][0] + uses, found[(user,)][1] + spent]
        return {key: one for key, one in found.items() if any(one)}

    def streaks(self, user: UUID, today: date) -> tuple[int, int, int]:
        """Days active, the longest streak, the last one if it goes on."""
        days = sorted(day for one, day in self.days if one == user)
        runs: list[int] = []
        for number, day in enumerate(days):
            if number and day - days[number - 1] == timedelta(days=1):
                runs[-1] += 1
            else:
                runs.append(1)
        if not days:
            return 0, 0, 0
        return len(days), max(runs), runs[-1] if days[-1] >= today - timedelta(days=1) else 0


async def said_by_log(deps: Deps) -> Said:
    zones = dict(await rows(deps, "SELECT id, timezone FROM users"))
    refunds: dict[Any, list[int]] = defaultdict(lambda: [0, 0])
    for user, usage, amount, applied in await rows(
        deps, "SELECT user_id, usage_id, amount, applied_micro FROM usage_refunds"
    ):
        refunds[user, usage][0] += amount
        refunds[user, usage][1] += applied
    said, records = Said(), defaultdict(list)
    for row in await rows(deps, "SELECT * FROM usage_logs"):
        user, at = row["user_id"], row["created_at"]
        back, applied = refunds.get((user, row["id"]), (0, 0))
        units, uses = row["amount"] - back, int(back == 0 or back < row["amount"])
        spent = row["credits_consumed"] - Decimal(applied) / 1_000_000
        local = at.astimezone(ZoneInfo(zones[user])).date()
        month = local.replace(day=1)
        key = (user, at.date(), row["action"], row["format"] or "", row["quality"] or "")
        said.daily[key] = [
            a + b for a, b in zip(said.daily[key], (uses, units, spent), strict=True)
        ]
        if uses:
            said.days[user, local] += 1
            said.features[user, month, row["action"]][0] += units
            said.features[user, month, row["action"]][1] += 1
            said.instants[user, month].append(at)
        records[user, row["key"] or str(row["id"])].append((row["action"], units, month))
    for (user, _), lines in records.items():
        done = {action: units for action, units, _ in lines}
        number = done.get("completed_sessions", done.get("conversations", 0))
        if number and done.get("seconds"):
            said.sessions[user, lines[0][2]].append((number, done["seconds"]))
    said.daily = {key: one for key, one in said.daily.items() if any(one)}
    return said


async def check(deps: Deps, since: date = SINCE) -> None:
    """Every rollup is what the log says."""
    said = await said_by_log(deps)
    assert said.daily == await table(
        deps,
        """SELECT user_id, day, action, format, quality, ARRAY[uses, units, credits] FROM usage_daily""",
    )
    assert {key: one for key, one in said.actions.items() if any(one)} == await table(
        deps, "SELECT day, action, ARRAY[uses, units, credits] FROM usage_daily_actions"
    )
    assert dict(said.days) == await table(deps, "SELECT user_id, day, uses FROM user_active_days")
    assert dict(said.features) == await table(
        deps, "SELECT user_id, month, feature, ARRAY[units, uses] FROM user_usage_features"
    )
    assert said.window(since) == await table(
        deps, "SELECT user_id, ARRAY[uses, credits] FROM usage_last_30_days"
    )
    for action in {action for _, _, action, _, _ in said.daily}:
        for day in (START.date(), START.date() + timedelta(days=5), TODAY):
            (row,) = await rows(
                deps,
                """SELECT coalesce(sum(users), 0)::int AS users FROM usage_users_by_last_day
                   WHERE action = $1 AND last_day >= $2""",
                action, day,
            )  # fmt: skip
            assert row["users"] == said.users_since(action, day), (action, day)
    await _check_months(deps, said)
    await _check_lifetimes(deps, said, since + timedelta(days=30))


async def _check_months(deps: Deps, said: Said) -> None:
    found = await rows(deps, "SELECT * FROM user_usage")
    assert {(row["user_id"], row["month"]) for row in found} == set(said.instants)
    for row in found:
        place = row["user_id"], row["month"]
        sessions, instants = said.sessions[place], said.instants[place]
        count, seconds = sum(n for n, _ in sessions), sum(s for _, s in sessions)
        for column, feature in (
            ("conversations", "conversations"),
            ("seconds", "seconds"),
            ("realtime_sessions", "realtime_sessions"),
            ("anki_exports_used", "anki_exports"),
            ("completed_sessions", "completed_sessions"),
        ):
            assert row[column] == said.features.get((*place, feature), [0])[0], (place, column)
        assert (row["timed_sessions"], row["session_seconds"]) == (count, seconds)
        assert row["average_session_length"] == rounded(seconds, count)
        assert row["longest_session"] == max((rounded(s, n) for n, s in sessions), default=0)
        assert (row["first_active_at"], row["last_active_at"]) == (min(instants), max(instants))
        over = 0 if row["overage_after"] is None else row["seconds"] - row["overage_after"]
        assert row["overage_seconds"] == max(0, over)


async def _check_lifetimes(deps: Deps, said: Said, today: date) -> None:
    noon = datetime.combine(today, time(12), UTC)
    zones = dict(await rows(deps, "SELECT id, timezone FROM users"))
    found = {row["user_id"]: row for row in await rows(deps, "SELECT * FROM user_lifetime_stats")}
    assert set(found) >= {user for user, _ in said.days}
    for user, row in found.items():
        streaks = row["days_active"], row["longest_streak"], row["current_streak"]
        assert streaks == said.streaks(user, noon.astimezone(ZoneInfo(zones[user])).date())
        instants = [
            at for (one, _), all_at in said.instants.items() if one == user for at in all_at
        ]
        assert row["last_active_at"] == max(instants, default=None)
        total = sum(
            units
            for (one, _, feature), (units, _) in said.features.items()
            if (one, feature) == (user, "seconds")
        )
        assert row["total_seconds"] == total


def rounded(seconds: int, count: int) -> int:
    """As PostgreSQL rounds a numeric: half away from zero."""
    return (2 * seconds + count) // (2 * count) if count else 0


# -- the tests -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2])
async def test_folds_come_to_what_the_log_says(on_open_tiers: Deps, seed: int):
    deps, chance = on_open_tiers, random.Random(seed)
    users = [f"user-{number}" for number in range(4)]
    for number, user in enumerate(users):
        await move(deps, user, START, timezone=ZONES[number % len(ZONES)])
    at, keys = START, []
    for step in range(60):
        at += timedelta(hours=chance.choice([0, 1, 7, 30]))
        user = chance.choice(users)
        act = chance.random()
        if act < 0.7:
            key = f"key-{step}" if chance.random() < 0.5 else None
            features = {
                feature: chance.randint(1, 400)
                for feature in chance.sample(FEATURES, chance.randint(1, 3))
            }
            back = timedelta(hours=chance.choice([0, 0, 0, 0.01, 5, 24 * 12, 24 * 45]))
            how = {"occurred_at": at - back} if back else {}
            await record(deps, user, features, at, key=key, **how)
            if key is not None:
                keys.append((user, key))
        elif act < 0.8 and keys:
            await settle(deps)
            owner, key = chance.choice(keys)
            part = 20 if key.startswith("h") else None
            await give_back(deps, owner, key, part, at)
        elif act < 0.9:
            await deps.quota.reserve(user, "seconds", 90, ttl=7200, key=f"h{step}", now=at)
            at += timedelta(hours=1)
            await settle(deps)
            await deps.quota.commit(user, f"h{step}", chance.choice([30, 90, 200]), now=at)
            keys.append((user, f"h{step}"))
        else:
            await settle(deps)
            await fold_once(deps.database, today=TODAY, records_max=chance.choice([1, 1000]))
    await move(deps, users[0], at, timezone="Pacific/Auckland")
    await settle(deps)
    await fold(deps)

    await check(deps)
    assert await rollup_lag(deps.database) == 0


async def test_what_was_folded_is_what_counting_anew_comes_to(on_open_tiers: Deps):
    deps = on_open_tiers
    for day in (0, 1, 2, 8):
        await record(deps, "a", {"conversations": 1, "seconds": 600}, START + timedelta(days=day))
        await record(deps, "b", {"anki_exports": 2}, START + timedelta(days=day))
    await settle(deps)
    await fold(deps)
    tables = (
        "usage_daily", "usage_daily_actions", "usage_last_days", "usage_users_by_last_day",
        "usage_last_30_days", "user_active_days", "user_usage", "user_usage_features",
    )  # fmt: skip
    before = {name: set(await rows(deps, f"SELECT * FROM {name}")) for name in tables}

    await rows(deps, "INSERT INTO stale_rollups (user_id) SELECT id FROM users")
    assert (await fold(deps)).users == 2

    assert {name: set(await rows(deps, f"SELECT * FROM {name}")) for name in tables} == before
    await check(deps)


@asynccontextmanager
async def a_fold_that_waits(deps: Deps, url: str) -> AsyncIterator[tuple[asyncio.Task[Any], int]]:
    """A fold that waits in its middle, before a table that is locked until the end; with its backend."""
    other = await asyncpg.connect(url)
    try:
        transaction = other.transaction()
        await transaction.start()
        await other.execute("LOCK TABLE user_usage IN EXCLUSIVE MODE")
        task = asyncio.create_task(fold_once(deps.database, today=TODAY))
        while True:
            waiting = await other.fetchval(
                "SELECT min(pid) FROM pg_locks WHERE NOT granted AND relation = 'user_usage'::regclass"
            )
            if waiting is not None:
                break
            assert not task.done()
            await asyncio.sleep(0)
        yield task, waiting
        await transaction.rollback()
    finally:
        await other.close()


async def test_a_fold_that_is_killed_before_its_end_did_nothing(
    on_open_tiers: Deps, database_url: str
):
    deps = on_open_tiers
    await record(deps, "a", {"conversations": 1, "seconds": 600}, START)
    await settle(deps)

    async with a_fold_that_waits(deps, database_url) as (task, backend):
        killer = await asyncpg.connect(database_url)
        await killer.execute("SELECT pg_terminate_backend($1)", backend)
        await killer.close()
        with pytest.raises((asyncpg.PostgresError, ConnectionError, asyncpg.InterfaceError)):
            await task

    assert await rows(deps, "SELECT * FROM usage_daily") == []
    assert (await fold(deps)).records == 2
    await check(deps)


async def test_of_two_at_once_one_folds(on_open_tiers: Deps, database_url: str):
    deps = on_open_tiers
    await record(deps, "a", {"conversations": 1}, START)
    await settle(deps)

    async with a_fold_that_waits(deps, database_url) as (task, _):
        assert await fold_once(deps.database, today=TODAY) is None
        await record(deps, "a", {"conversations": 1}, START)
        await settle(deps)  # applying goes on meanwhile

    folded = await task
    assert folded.records == 1
    assert (await fold(deps)).records == 1
    assert (await fold(deps)).records == 0
    await check(deps)


async def test_rows_that_move_to_a_partition_before_they_are_folded_count_once(
    on_open_tiers: Deps,
):
    deps = on_open_tiers
    await record(
        deps, "a", {"conversations": 1, "seconds": 9}, datetime(2025, 3, 31, 23, tzinfo=UTC)
    )
    await record(deps, "a", {"seconds": 7}, datetime(2025, 4, 1, 1, tzinfo=UTC))
    await settle(deps)

    async with deps.database.connection() as connection:
        assert await make_partitions(connection, now=START, months_ahead=0)

    assert (await fold(deps)).records == 3
    await check(deps)


async def test_a_record_of_long_ago_is_named_and_does_not_widen_the_run(on_open_tiers: Deps):
    deps = on_open_tiers
    await record(deps, "a", {"seconds": 1}, START)
    await record(deps, "a", {"seconds": 2}, START, occurred_at=START - timedelta(seconds=30))
    await record(deps, "a", {"seconds": 4}, START, occurred_at=START - timedelta(days=90))
    await settle(deps)

    (run,) = await rows(deps, "SELECT * FROM usage_runs")
    assert run["last_at"] - run["first_at"] == timedelta(seconds=30)
    assert (run["records"], run["instants"]) == (3, [START - timedelta(days=90)])
    await fold(deps)
    await check(deps)


async def test_rows_of_savepoints_are_found_too(on_open_tiers: Deps):
    deps = on_open_tiers
    await record(deps, "a", {"tokens": 1}, START)
    await settle(deps)
    await rows(deps, "UPDATE feature_usage SET usage_count = 9223372036854775807 - 2")
    for feature in ("seconds", "tokens", "tokens", "conversations", "anki_exports"):
        await record(deps, "a", {feature: 2}, START)  # the second tokens are more than fit

    await settle(deps)  # so the run is halved until they stand alone

    assert len(await rows(deps, "SELECT * FROM quarantined_records")) == 1
    assert len(await rows(deps, "SELECT DISTINCT xmin::text FROM usage_runs")) > 2
    assert (await fold(deps)).records == 5
    await check(deps)


async def test_rows_that_are_not_found_stop_the_fold_in_words(on_open_tiers: Deps):
    deps = on_open_tiers
    await record(deps, "a", {"seconds": 1}, START)
    await settle(deps)
    # As a restored dump: another xmin, and no note of it.
    await rows(deps, "ALTER TABLE usage_logs DISABLE TRIGGER USER")
    await rows(deps, "UPDATE usage_logs SET event_type = 'touched'")

    with pytest.raises(RunsIncompleteError, match="allotment rebuild"):
        await fold(deps)

    assert await rows(deps, "SELECT * FROM usage_daily") == []
    assert await rollup_lag(deps.database) > 0


@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM usage_logs WHERE user_id = $1 AND amount = 1",
        "UPDATE usage_logs SET amount = 5 WHERE user_id = $1 AND amount = 1",
        "UPDATE usage_logs SET created_at = created_at + interval '40 days' WHERE user_id = $1",
    ],
)
async def test_an_admin_may_change_rows_that_are_not_folded(on_open_tiers: Deps, change: str):
    deps = on_open_tiers
    for seconds in (1, 2):
        for user in ("a", "b"):
            await record(deps, user, {"seconds": seconds}, START)
    await settle(deps)
    async with deps.database.connection() as connection:
        await make_partitions(connection, now=START, months_ahead=0)
        async with connection.transaction():
            await connection.execute("SET LOCAL ROLE allotment_admin")
            await connection.execute(change, parse_user_id("a").id)

    folded = await fold(deps)

    assert folded.users == 1
    await check(deps)


async def test_a_streak_grows_and_is_mended_by_what_comes_late(on_open_tiers: Deps):
    deps = on_open_tiers
    await move(deps, "a", START, timezone="America/Los_Angeles")
    for hours in (0, 24, 72, 96):  # two in the morning there, of the first to the fifth
        await record(deps, "a", {"conversations": 1}, START + timedelta(hours=hours))
        await settle(deps)
        await fold(deps)
    await check(deps)
    at = START + timedelta(hours=97)

    await record(
        deps, "a", {"conversations": 1}, at, key="late", occurred_at=at - timedelta(days=2)
    )
    await settle(deps)
    await fold(deps)

    async with deps.database.connection() as connection:
        a = parse_user_id("a").id
        found = await lifetime_of(connection, a, at=at)
        assert found is not None
        assert (found["days_active"], found["current_streak"], found["longest_streak"]) == (5, 5, 5)
        assert found["milestones"]["days_active"] == [1]
        later = await lifetime_of(connection, a, at=at + timedelta(days=2))
        assert later is not None
        assert (later["current_streak"], later["longest_streak"]) == (0, 5)
    await give_back(deps, "a", "late", None, at)
    await fold(deps)
    await check(deps)


async def test_the_tier_of_a_month_is_that_of_its_last_use(on_open_tiers: Deps):
    deps = on_open_tiers
    at = START + timedelta(days=31)
    await record(deps, "a", {"seconds": 1300}, START)
    await settle(deps)
    await fold(deps)
    await move(deps, "a", at, tier="pro")
    await record(deps, "a", {"seconds": 5000}, at)
    await record(deps, "a", {"seconds": 100}, at, key="k", occurred_at=START - timedelta(hours=1))
    await settle(deps)
    await fold(deps)
    months = "SELECT month, tier_when_used, overage_seconds FROM user_usage ORDER BY 1"
    expected = [(date(2025, 3, 1), "free", 400), (date(2025, 4, 1), "pro", 0)]
    assert [tuple(row) for row in await rows(deps, months)] == expected

    await rows(deps, "INSERT INTO stale_rollups (user_id) SELECT id FROM users")
    await fold(deps)

    assert [tuple(row) for row in await rows(deps, months)] == expected


async def tier_and_overage(deps: Deps) -> list[tuple[Any, ...]]:
    """What the one month says, folded and counted anew."""
    query = "SELECT tier_when_used, overage_seconds FROM user_usage"
    folded = [tuple(row) for row in await rows(deps, query)]
    await rows(deps, "UPDATE user_usage SET tier_when_used = 'wrong', overage_after = 7")
    await rows(deps, "INSERT INTO stale_rollups (user_id) SELECT id FROM users")
    await fold(deps)
    assert [tuple(row) for row in await rows(deps, query)] == folded
    return folded


async def test_a_streak_ends_in_the_table_by_itself(on_open_tiers: Deps):
    deps = on_open_tiers
    for days in (0, 1):
        await record(deps, "a", {"tokens": 1}, START + timedelta(days=days))
    await settle(deps)
    streak = "SELECT current_streak, longest_streak, streak_ends_on FROM user_lifetime_stats"
    last = START.date() + timedelta(days=1)

    for days, current in ((1, 2), (2, 2), (3, 0)):
        await fold(deps, START.date() + timedelta(days=days))
        assert [tuple(row) for row in await rows(deps, streak)] == [(current, 2, last)]

    late = START + timedelta(days=2)
    await record(deps, "a", {"tokens": 1}, START + timedelta(days=3), occurred_at=late)
    await settle(deps)
    await fold(deps, START.date() + timedelta(days=3))
    assert [tuple(row) for row in await rows(deps, streak)] == [(3, 3, late.date())]


async def test_sums_of_everybody_pass_64_bits(on_open_tiers: Deps):
    deps = on_open_tiers
    for user in ("a", "b"):
        await record(deps, user, {"tokens": 1}, START)
    await settle(deps)
    await rows(deps, "UPDATE usage_logs SET amount = 9223372036854775807")

    await fold(deps)

    await check(deps)


async def test_of_a_user_who_was_erased_nothing_is_kept_in_months(on_open_tiers: Deps):
    deps = on_open_tiers
    for user in ("a", "b"):
        await record(deps, user, {"tokens": 1}, START)
    await settle(deps)
    await rows(deps, "DELETE FROM users WHERE id = $1", parse_user_id("a").id)
    await rows(deps, "INSERT INTO stale_rollups VALUES ($1)", parse_user_id("a").id)

    await fold(deps)

    kept = await rows(
        deps, "SELECT user_id FROM user_lifetime_stats JOIN user_usage USING (user_id)"
    )
    assert [row["user_id"] for row in kept] == [parse_user_id("b").id]


async def test_a_fold_after_a_change_of_tier_has_the_tier_of_the_use(on_open_tiers: Deps):
    deps = on_open_tiers
    await record(deps, "a", {"seconds": 1300}, START)
    await settle(deps)
    await move(deps, "a", START + timedelta(days=1), tier="pro")
    await fold(deps)

    assert await tier_and_overage(deps) == [("free", 300)]


async def test_a_backdated_record_has_the_tier_of_its_instant(on_open_tiers: Deps):
    deps = on_open_tiers
    await record(deps, "a", {"tokens": 1}, START)
    await settle(deps)
    await rows(deps, "DELETE FROM usage_logs")
    await rows(deps, "DELETE FROM usage_runs")
    await move(deps, "a", START + timedelta(days=2), tier="pro")
    await move(deps, "a", START + timedelta(days=4), tier="free")
    for days, seconds in ((1, 4000), (3, 5000)):
        at = START + timedelta(days=days)
        await record(deps, "a", {"seconds": seconds}, START + timedelta(days=5), occurred_at=at)
    await settle(deps)
    await fold(deps)

    assert await tier_and_overage(deps) == [("pro", 0)]


async def test_a_limit_of_later_changes_no_month_of_before(on_open_tiers: Deps, apply_tiers: Any):
    deps = on_open_tiers
    await record(deps, "a", {"seconds": 1300}, START)
    await settle(deps)
    await apply_tiers(deps, {**OPEN, "tiers": {"free": OPEN["tiers"]["pro"]}})
    await fold(deps)

    assert await tier_and_overage(deps) == [("free", 300)]


async def test_days_that_leave_the_window_are_taken_out_once(on_open_tiers: Deps):
    deps = on_open_tiers
    await rows(deps, "UPDATE rollup_state SET window_since = $1", START.date())
    await record(deps, "a", {"seconds": 8}, START)
    await record(deps, "a", {"seconds": 4}, START + timedelta(days=3))
    await record(deps, "b", {"seconds": 2}, START)
    await settle(deps)
    today = START.date() + timedelta(days=30)
    await fold(deps, today)
    await check(deps, START.date())

    for day in (1, 1, 2):
        await fold(deps, today + timedelta(days=day))
        await check(deps, START.date() + timedelta(days=day))
    await fold(deps, today + timedelta(days=400))
    assert await rows(deps, "SELECT * FROM usage_last_30_days") == []


async def test_a_user_who_takes_too_long_to_count_anew_holds_up_nobody(
    on_open_tiers: Deps, database_url: str
):
    deps, pace = on_open_tiers, Pace()
    users = [f"user-{number}" for number in range(5)]
    slow = parse_user_id(users[0]).id
    for user in users:
        await record(deps, user, {"seconds": 8}, START)
    await settle(deps)
    await fold(deps)
    await rows(deps, "INSERT INTO stale_rollups (user_id) VALUES ($1)", slow)
    await rows(
        deps, "INSERT INTO stale_rollups (user_id) SELECT id FROM users WHERE id <> $1", slow
    )
    await record(deps, "another", {"seconds": 4}, START)
    await settle(deps)

    async def attempt() -> Folded | None:
        return await fold_all(
            deps.database, today=TODAY, seconds_max=60, pace=pace, recount_s_max=0.3
        )

    other = await asyncpg.connect(database_url)
    async with other.transaction():
        await other.execute("SELECT FROM user_usage WHERE user_id = $1 FOR UPDATE", slow)
        tried = []
        for _ in range(3):
            with pytest.raises(RecountTooSlowError) as caught:
                await attempt()
            tried.append(len(caught.value.users))
        assert tried == [5, 2, 1]
        assert await attempt() == Folded(0, 4, more=False)
    await other.close()

    assert [row["user_id"] for row in await rows(deps, "SELECT * FROM stale_rollups")] == [slow]
    assert await rows(deps, "SELECT * FROM usage_runs") == []
    assert (await fold(deps)).users == 1
    await check(deps)


async def test_the_job_folds_and_tells_how_far_behind_it_is(on_open_tiers: Deps):
    deps = on_open_tiers
    await record(deps, "a", {"seconds": 8, "conversations": 1}, START)
    await settle(deps)
    assert await rollup_lag(deps.database) > 0

    assert await fold_usage({"deps": deps}) == 2

    value = deps.registry.get_sample_value
    assert value("allotment_records_folded_total") == 2
    assert value("allotment_rollup_lag_seconds") == 0
    await rows(
        deps, "INSERT INTO usage_runs (records, users, ids, instants) VALUES (1, '{}', '{}', '{}')"
    )
    assert await fold_usage({"deps": deps}) == 0  # a run whose rows are lost
    assert value("allotment_rollup_lag_seconds") != 0


async def test_the_ranking_and_distinct_users_are_read_from_an_index(on_open_tiers: Deps):
    async with on_open_tiers.database.connection() as connection:
        await connection.execute(
            """
            INSERT INTO usage_last_30_days SELECT gen_random_uuid(), 1, n FROM generate_series(1, 5000) n;
            INSERT INTO users (id, tier) SELECT user_id, 'free' FROM usage_last_30_days;
            INSERT INTO usage_users_by_last_day
            SELECT 'action-' || n, '2025-01-01'::date + d, 1
            FROM generate_series(1, 20) n, generate_series(1, 200) d;
            ANALYZE usage_last_30_days, users, usage_users_by_last_day
            """
        )

        ranking = await connection.fetch(
            """EXPLAIN SELECT w.user_id, u.username, w.credits, w.uses FROM usage_last_30_days w
               JOIN users u ON u.id = w.user_id ORDER BY w.credits DESC, w.user_id LIMIT 20"""
        )
        distinct = await connection.fetch(
            """EXPLAIN SELECT sum(users) FROM usage_users_by_last_day
               WHERE action = 'action-3' AND last_day >= '2025-06-01'"""
        )

    assert "idx_usage_last_30_days_credits" in str(ranking)
    assert "usage_users_by_last_day_pkey" in str(distinct)


@pytest.mark.parametrize(
    ("zone", "day"), [("Mars/Olympus_Mons", date(2025, 7, 1)), ("CET", date(2025, 7, 2))]
)
async def test_zones_that_postgresql_lacks_are_utc_and_cet_has_summer_time(
    on_open_tiers: Deps, zone: str, day: date
):
    deps = on_open_tiers
    await record(deps, "a", {"seconds": 8}, datetime(2025, 7, 1, 22, 30, tzinfo=UTC))
    await settle(deps)
    await rows(deps, "UPDATE users SET timezone = $1", zone)

    await fold(deps)

    days = "SELECT day FROM user_active_days"
    assert [row["day"] for row in await rows(deps, days)] == [day]
    await rows(deps, "INSERT INTO stale_rollups (user_id) SELECT id FROM users")
    await fold(deps)
    assert [row["day"] for row in await rows(deps, days)] == [day]
