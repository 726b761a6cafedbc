"""Rollups that are wrong: found, mended, made anew; what is right stays as it is."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from quota.values import parse_user_id
from service.rebuild import rebuild
from service.rollups import RunsIncompleteError, fold_all, fold_once
from service.verify import Report
from service.verify_rollups import verify_rollups
from worker.deps import Deps

NOW = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)
TABLES = (
    "usage_daily",
    "usage_daily_actions",
    "usage_last_days",
    "usage_users_by_last_day",
    "usage_last_30_days",
    "user_active_days",
    "user_usage",
    "user_usage_features",
    "user_lifetime_stats",
)
# One wrong figure, a row too much or one too few, of each table.
HARM = {
    "usage_daily.units": "UPDATE usage_daily SET units = units + 1 WHERE action = 'tokens'",
    "usage_daily": "DELETE FROM usage_daily WHERE action = 'tokens'",
    "usage_daily_actions": "UPDATE usage_daily_actions SET uses = 7",
    "usage_last_days.last_day": "UPDATE usage_last_days SET last_day = last_day - 1",
    "usage_users_by_last_day": "INSERT INTO usage_users_by_last_day VALUES ('tokens', '2020-01-01', 3)",
    "usage_last_30_days.uses": "UPDATE usage_last_30_days SET uses = 0",
    "user_active_days": "INSERT INTO user_active_days SELECT id, '2020-01-01', 1 FROM users",
    "user_usage.uses": "UPDATE user_usage SET uses = 0",
    "user_usage_features.units": "UPDATE user_usage_features SET units = units * 2",
    "user_lifetime_stats.current_streak": "UPDATE user_lifetime_stats SET current_streak = 9",
    "user_lifetime_stats.months_subscribed": "UPDATE user_lifetime_stats SET months_subscribed = 9",
    "user_lifetime_stats.highest_tier_reached": "UPDATE user_lifetime_stats SET highest_tier_reached = 'x'",
    "user_lifetime_stats.total_revenue": "UPDATE user_lifetime_stats SET total_revenue = 5",
    "user_lifetime_stats.longest_streak": "UPDATE user_lifetime_stats SET longest_streak = 99",
}


async def rows(deps: Deps, query: str) -> list[Any]:
    async with deps.database.connection() as connection:
        return list(await connection.fetch(query))


async def everything(deps: Deps) -> dict[str, set[Any]]:
    found = {
        name: {tuple(row) for row in await rows(deps, f"SELECT * FROM {name}")} for name in TABLES
    }
    found["user_lifetime_stats"] = {one[:-1] for one in found["user_lifetime_stats"]}  # updated_at
    return found


async def use(deps: Deps, *, folded: bool = True) -> None:
    for user in ("a", "b"):
        await deps.quota.record(user, {"tokens": 5, "event": 1}, now=NOW)
        await deps.quota.record(user, "tokens", 2, now=NOW - timedelta(days=1))
    while await deps.drain.run(seconds_max=30):
        pass
    if folded:
        await fold_once(deps.database)


async def verified(deps: Deps, *, fix: bool = False, user: str | None = None) -> Report:
    report = Report()
    user_id = None if user is None else parse_user_id(user).id
    await verify_rollups(deps.database, report, fix=fix, user_id=user_id)
    return report


async def test_what_was_folded_verifies_and_is_left_as_it_is(deps: Deps):
    await use(deps)
    before = await everything(deps)

    report = await verified(deps)

    assert report.found == 0
    assert await everything(deps) == before


async def test_what_is_not_folded_yet_is_no_difference(deps: Deps):
    await use(deps)
    await use(deps, folded=False)
    await rows(deps, "INSERT INTO stale_rollups (user_id) SELECT id FROM users LIMIT 1")

    assert (await verified(deps)).found == 0


@pytest.mark.parametrize("figure", HARM)
async def test_each_wrong_figure_is_found_and_mended(deps: Deps, figure: str):
    await use(deps)
    right = await everything(deps)
    await rows(deps, HARM[figure])
    wrong = await everything(deps)

    found = await verified(deps)
    assert figure in found.by_figure
    assert await everything(deps) == wrong

    mended = await verified(deps, fix=True)
    assert mended.remaining == 0
    assert mended.by_figure[figure]
    assert (await verified(deps)).found == 0
    assert await everything(deps) == right


async def test_one_user_alone_is_compared(deps: Deps):
    await use(deps)
    await rows(deps, "UPDATE user_usage SET uses = 0")

    assert (await verified(deps, fix=True, user="a")).found == 1

    found = await verified(deps)
    assert [one.user for one in found.findings] == ["b"]


async def test_a_rebuild_makes_everything_anew(deps: Deps):
    await use(deps)
    right = await everything(deps)
    for harm in HARM.values():
        await rows(deps, harm)
    told: list[tuple[int, int]] = []

    assert await rebuild(deps.database, tell=lambda *place: told.append(place)) == 2

    assert told[-1] == (2, 2)
    assert await everything(deps) == right
    assert await rows(deps, "SELECT * FROM stale_rollups") == []


async def test_a_rebuild_of_one_user_leaves_the_others(deps: Deps):
    await use(deps)
    await rows(deps, "UPDATE user_usage SET uses = 0")

    assert await rebuild(deps.database, user_id=parse_user_id("a").id) == 1

    assert [row["uses"] for row in await rows(deps, "SELECT uses FROM user_usage WHERE uses = 0")]
    assert (await verified(deps)).by_figure["user_usage.uses"] >= 1


async def test_runs_whose_rows_are_lost_are_counted_by_a_rebuild(deps: Deps):
    await use(deps, folded=False)
    # As a restored dump: another xmin, and no note of it.
    await rows(deps, "ALTER TABLE usage_logs DISABLE TRIGGER USER")
    await rows(deps, "UPDATE usage_logs SET event_type = 'touched'")
    with pytest.raises(RunsIncompleteError):
        await fold_once(deps.database)
    assert (await verified(deps)).by_figure == {"usage_runs": 1}

    assert (await verified(deps, fix=True)).remaining == 0

    assert await rows(deps, "SELECT * FROM usage_runs") == []
    assert (await verified(deps)).found == 0
    (row,) = await rows(deps, "SELECT sum(uses)::int AS uses FROM usage_daily")
    assert row["uses"] == 6


async def test_one_user_alone_is_worked_on(deps: Deps):
    await use(deps)
    await rows(deps, "UPDATE user_usage SET uses = 7")
    await rows(deps, "INSERT INTO stale_rollups (user_id) SELECT id FROM users")

    assert await rebuild(deps.database, user_id=parse_user_id("a").id) == 1
    await verified(deps, fix=True, user="a")

    waiting = await rows(deps, "SELECT user_id FROM stale_rollups")
    assert [row["user_id"] for row in waiting] == [parse_user_id("b").id]
    wrong = await rows(deps, "SELECT DISTINCT user_id FROM user_usage WHERE uses = 7")
    assert [row["user_id"] for row in wrong] == [parse_user_id("b").id]


async def test_runs_that_are_lost_are_not_made_good_for_one_user(deps: Deps):
    await use(deps, folded=False)
    await rows(deps, "ALTER TABLE usage_logs DISABLE TRIGGER USER")
    await rows(deps, "UPDATE usage_logs SET event_type = 'touched'")

    report = await verified(deps, fix=True, user="a")

    assert report.remaining == 1
    assert await rows(deps, "SELECT * FROM stale_rollups") == []
    with pytest.raises(RunsIncompleteError):
        await rebuild(deps.database, user_id=parse_user_id("a").id)


async def test_a_rebuild_that_is_killed_is_ended_by_the_worker(deps: Deps):
    await use(deps)
    right = await everything(deps)
    for harm in HARM.values():
        await rows(deps, harm)

    def die(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await rebuild(deps.database, tell=die)
    await fold_all(deps.database, seconds_max=60)

    assert await everything(deps) == right
    assert await rows(deps, "SELECT 1 FROM rollup_state WHERE platform_is_stale") == []
