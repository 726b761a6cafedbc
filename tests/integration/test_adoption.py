"""Who has taken to a feature: ever and lately, of how many, since when; and what that reads."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from quota.errors import InvalidValueError
from quota.rules import Rules
from quota.values import parse_user_id
from service.adoption import adoption, adoption_of
from service.database import statement
from service.rollups import fold_all
from service.users import put_user
from worker.deps import Deps

NOW = datetime(2025, 3, 31, 12, tzinfo=UTC)
ANY = {"limits": {"*": {"max": "unlimited", "per": "month"}}}
TIERS = {"default_tier": "free", "tiers": {"free": ANY, "pro": ANY}}


def ago(days: float) -> datetime:
    return NOW - timedelta(days=days)


@pytest.fixture
async def used(deps: Deps, apply_tiers: Any) -> None:
    """Four users, one on pro; what they used of three features, applied and folded."""
    rules: Rules = await apply_tiers(deps, TIERS)
    async with deps.database.session() as session:
        for user in ("anna", "bert", "cleo", "dora"):
            tier = "pro" if user == "bert" else None
            await put_user(session, parse_user_id(user), rules, at=ago(90), tier=tier)
    for user, feature, amount, days in (
        ("anna", "export", 1, 60),
        ("bert", "export", 2, 60.5),
        ("anna", "export", 4, 3),
        ("bert", "share", 1, 30.4),  # on the day in which the instant 30 days ago lies
        ("cleo", "share", 1, 30.6),  # on the one before
    ):
        await deps.quota.record(user, feature, amount, now=ago(days))
    await deps.quota.record("cleo", "undone", 1, key="undone", now=ago(2))
    await deps.quota.record("bert", "export", 1, key="again", now=ago(2))
    await deps.drain.run(seconds_max=30)
    await deps.quota.refund("undone", user_id="cleo", now=ago(1))
    await deps.quota.refund("again", user_id="bert", now=ago(1))
    await fold_all(deps.database, seconds_max=30)


async def test_each_feature_has_its_users_ever_and_lately(deps: Deps, used: None):
    async with deps.database.connection() as connection:
        found = await adoption(connection, days=30, at=NOW)

    assert [one.feature for one in found] == ["export", "share", "undone"]
    export, share, undone = found
    assert (export.users, export.recent_users, export.everyone) == (2, 1, 4)
    assert (export.units, export.recent_units, export.share) == (7, 4, 0.5)
    assert (export.first_used_on, export.last_used_at) == (ago(60.5).date(), ago(2))
    assert (share.users, share.recent_users, share.recent_units) == (2, 1, 1)
    assert (undone.users, undone.recent_users, undone.units) == (0, 0, 0)
    assert undone.first_used_on is undone.last_used_at is None


async def test_a_feature_is_told_by_the_tiers_that_users_are_on(deps: Deps, used: None):
    async with deps.database.connection() as connection:
        whole, by_tier = await adoption_of(connection, "export", days=30, at=NOW)
        every = await adoption(connection, days=30, at=NOW)

    assert whole == every[0]
    assert {name: (one.users, one.everyone, one.recent_users) for name, one in by_tier.items()} == {
        "free": (1, 3, 1),
        "pro": (1, 1, 0),
    }
    assert by_tier["pro"].share == 1.0


async def test_a_feature_that_nobody_used_has_no_users(deps: Deps, used: None):
    async with deps.database.connection() as connection:
        whole, by_tier = await adoption_of(connection, "calendar", days=7, at=NOW)

    assert (whole.users, whole.units, whole.recent_units, whole.share) == (0, 0, 0, 0.0)
    assert whole.first_used_on is whole.last_used_at is None
    assert by_tier["free"].everyone == 3


async def test_use_that_no_fold_has_seen_is_recent_by_itself(deps: Deps, used: None):
    """And so is what came over from a legacy table, of which there is no log."""
    await deps.quota.record("dora", "share", 1, now=ago(0.1))
    await deps.drain.run(seconds_max=30)

    async with deps.database.connection() as connection:
        whole, by_tier = await adoption_of(connection, "share", days=30, at=NOW)
        every = await adoption(connection, days=30, at=NOW)

    assert (whole.recent_users, by_tier["free"].recent_users) == (2, 1)
    assert next(one.recent_users for one in every if one.feature == "share") == 2


async def test_units_of_everybody_may_be_more_than_a_counter_has(deps: Deps):
    async with deps.database.connection() as connection:
        await connection.execute(
            """
            INSERT INTO users (id, tier) SELECT gen_random_uuid(), 'free' FROM generate_series(1, 1100);
            INSERT INTO feature_usage (user_id, feature_name, usage_count)
            SELECT id, 'export', 9007199254740991 FROM users
            """
        )
        (export,) = await adoption(connection, days=30)
        whole, by_tier = await adoption_of(connection, "export", days=30)

    expected = 1100 * (2**53 - 1)
    assert [one.units for one in (export, whole, by_tier["free"])] == [expected] * 3
    assert type(export.as_dict()["units"]) is int


@pytest.mark.parametrize("days", [0, -1, 36_501, True, "30"])
async def test_days_that_can_not_be_are_refused(deps: Deps, days: Any):
    async with deps.database.connection() as connection:
        with pytest.raises(InvalidValueError, match="days"):
            await adoption(connection, days=days)


async def test_no_query_reads_the_log_of_usage(deps: Deps):
    async with deps.database.connection() as connection:
        await connection.execute(
            """
            INSERT INTO users (id, tier) SELECT gen_random_uuid(), 'free' FROM generate_series(1, 500);
            INSERT INTO feature_usage (user_id, feature_name)
            SELECT u.id, 'a' || n FROM (SELECT id FROM users) u, generate_series(1, 20) n;
            ANALYZE users, feature_usage
            """
        )
        every = await connection.fetch("EXPLAIN " + statement("service", "adoption"), NOW)
        one = await connection.fetch(
            "EXPLAIN " + statement("service", "adoption_by_tier"), "a1", NOW
        )

    assert "usage_logs" not in f"{every}{one}"
    assert "idx_feature_usage_name" in f"{one}"
