"""The queries of seed 003: each answers what the seed's own SQL finds in the log, and reads the log for none of it."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from quota.errors import InvalidValueError
from service import analytics
from service.database import Database, statement
from service.identity import Identity, acting_as
from service.rollups import fold_all
from service.urls import sqlalchemy_url

ADMIN = Identity(None, admin=True)
USERS = [UUID(int=number) for number in range(1, 41)]
ANNA, BERT = USERS[:2]
# Of each user so many records over a hundred days, of which the last is today.
FILL = """
    INSERT INTO users (id, tier, username)
    SELECT id, 'free', 'name of ' || right(id::text, 2) FROM unnest($1::uuid[]) AS id
"""
LOG = """
    INSERT INTO usage_logs (user_id, action, amount, credits_consumed, created_at, format, quality, metadata)
    SELECT u.id, 'action_' || n % 5, 1 + n % 3, (n % 7) * 0.5 + u.place * 0.01,
           now() - n * interval '100 days' / $2 - interval '1 second',
           (ARRAY['image', 'video', NULL])[1 + n % 3], (ARRAY['high', NULL, 'low', 'high'])[1 + n % 4],
           CASE WHEN n % 2 = 0 THEN jsonb_build_object('n', n) END
    FROM unnest($1::uuid[]) WITH ORDINALITY AS u(id, place)
    CROSS JOIN generate_series(0, $2::int - 1) AS n
"""
RECORDS = 250


@pytest.fixture
async def owner(database_url: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


@pytest.fixture
async def database(database_url: str, owner: asyncpg.Connection[Any]) -> AsyncIterator[Database]:
    """Logs of forty users, folded."""
    await owner.execute(FILL, USERS)
    await owner.execute(LOG, USERS, RECORDS)
    await owner.execute("INSERT INTO stale_rollups (user_id) SELECT id FROM users")
    async with Database(sqlalchemy_url(database_url), pool_max=2) as opened:
        await fold_all(opened, seconds_max=60)
        yield opened


# The seed's queries, for whole UTC days; `auth.uid()` is $1, and profiles are users.
SEED = {
    "history": """
        SELECT id, user_id, action, amount, credits_consumed, metadata, created_at, format, quality
        FROM usage_logs WHERE user_id = $1 ORDER BY created_at DESC LIMIT 100""",
    "credit_summary": """
        SELECT sum(credits_consumed), count(*), round(avg(credits_consumed), 6)
        FROM usage_logs WHERE user_id = $1 AND created_at >= since(30)""",
    "by_action": """
        SELECT action, count(*), sum(credits_consumed) AS total_credits, round(avg(credits_consumed), 6)
        FROM usage_logs WHERE user_id = $1 AND created_at >= since(30)
        GROUP BY action ORDER BY total_credits DESC, action""",
    "by_format_and_quality": """
        SELECT format, quality, count(*), sum(credits_consumed) AS total_credits
        FROM usage_logs WHERE user_id = $1 AND format IS NOT NULL AND quality IS NOT NULL
        GROUP BY format, quality ORDER BY total_credits DESC, format, quality""",
    "daily": """
        SELECT (date_trunc('day', created_at AT TIME ZONE 'UTC'))::date AS day, count(*), sum(credits_consumed)
        FROM usage_logs WHERE user_id = $1 AND created_at >= since(30) GROUP BY day ORDER BY day DESC""",
    "platform": """
        SELECT action, count(*), count(DISTINCT user_id), sum(credits_consumed) AS total_credits,
               round(avg(credits_consumed), 6)
        FROM usage_logs WHERE created_at >= since(7) GROUP BY action ORDER BY total_credits DESC, action""",
    "ranking": """
        SELECT ul.user_id, p.username, sum(ul.credits_consumed) AS total_credits, count(ul.id)
        FROM usage_logs ul JOIN users p ON ul.user_id = p.id WHERE ul.created_at >= since(30)
        GROUP BY ul.user_id, p.username ORDER BY total_credits DESC, ul.user_id LIMIT 20""",
    "weekly_trends": """
        SELECT date_trunc('week', created_at AT TIME ZONE 'UTC')::date AS week, action, count(*),
               sum(credits_consumed) AS weekly_credits
        FROM usage_logs WHERE created_at >= since(84)
        GROUP BY week, action ORDER BY week DESC, weekly_credits DESC, action""",
}
SINCE = """
    CREATE FUNCTION pg_temp.since(days int) RETURNS timestamptz STABLE
    RETURN ((now() AT TIME ZONE 'UTC')::date - days)::timestamp AT TIME ZONE 'UTC'
"""
OF_A_USER = ("history", "credit_summary", "by_action", "by_format_and_quality", "daily")
OF_EVERYBODY = ("platform", "weekly_trends")


async def said(owner: asyncpg.Connection[Any], name: str) -> list[tuple[Any, ...]]:
    """What the seed's own query finds in the log."""
    query = SEED[name].replace("since(", "pg_temp.since(")
    return [tuple(row) for row in await owner.fetch(query, *([ANNA] if name in OF_A_USER else []))]


async def asked(database: Database, name: str, identity: Identity) -> list[tuple[Any, ...]]:
    query = getattr(analytics, name)
    found = await query(database, identity, *([ANNA] if name in OF_A_USER else []))
    return [dataclasses.astuple(row) for row in (found if isinstance(found, list) else [found])]


async def test_each_query_answers_what_the_seeds_finds_in_the_log(
    database: Database, owner: asyncpg.Connection[Any]
):
    await owner.execute(SINCE)
    for name in SEED:
        expected = await said(owner, name)
        if name == "history":
            expected = [(*row[:5], row[5] and json.loads(row[5]), *row[6:]) for row in expected]

        found = await asked(database, name, ADMIN)

        assert found == expected, name
        assert len(found) > 1 or name == "credit_summary"


async def test_a_user_is_answered_of_oneself_alone(database: Database):
    anna, bert = Identity(ANNA), Identity(BERT)
    for name in OF_A_USER:
        everything = await asked(database, name, ADMIN)
        assert await asked(database, name, anna) == everything, name
    for name in OF_A_USER:
        nothing = [(Decimal(0), 0, None)] if name == "credit_summary" else []
        assert await asked(database, name, bert) == nothing, name
    for name in OF_EVERYBODY:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await asked(database, name, anna)
    assert {row.user_id for row in await analytics.ranking(database, anna)} == {ANNA}


async def test_a_range_is_today_and_so_many_days_before_it(
    database: Database, owner: asyncpg.Connection[Any]
):
    newest = await owner.fetchval("SELECT max(day) FROM usage_daily WHERE user_id = $1", ANNA)
    before, day = newest - dt.timedelta(days=1), dt.timedelta(days=1)

    found = await analytics.daily(database, ADMIN, ANNA, days=1, today=newest)
    later = await analytics.daily(database, ADMIN, ANNA, days=1, today=newest + day)
    latest = await analytics.daily(database, ADMIN, ANNA, days=1, today=newest + 2 * day)

    assert [one.day for one in found] == [newest, before]
    assert later == found[:1]
    assert latest == []


@pytest.mark.parametrize("found", [0, -1, True, "30", 2.0, None, 10**6])
async def test_what_can_not_be_asked_is_refused_with_its_field(database_url: str, found: Any):
    async with Database(sqlalchemy_url(database_url), pool_max=1) as opened:
        refused: dict[str, Any] = {
            "days": lambda: analytics.daily(opened, ADMIN, ANNA, days=found),
            "weeks": lambda: analytics.weekly_trends(opened, ADMIN, weeks=found),
            "limit": lambda: analytics.ranking(opened, ADMIN, limit=found),
        }
        for field, ask in refused.items():
            with pytest.raises(InvalidValueError, match=f"^{field}: .*from 1 to .*, found "):
                await ask()
        with pytest.raises(InvalidValueError, match="limit: "):
            await analytics.history(opened, ADMIN, ANNA, limit=found)


async def plan(
    connection: asyncpg.Connection[Any], query: str, *arguments: Any
) -> list[dict[str, Any]]:
    """The nodes of the plan of *query*."""
    for number, argument in enumerate(arguments, 1):
        literal = "NULL" if argument is None else f"'{argument}'"
        query = query.replace(f"${number}", literal)
    text = await connection.fetchval(f"EXPLAIN (FORMAT JSON) {query}")
    found: list[dict[str, Any]] = []
    pending = [json.loads(text)[0]["Plan"] if isinstance(text, str) else text[0]["Plan"]]
    while pending:
        node = pending.pop()
        found.append(node)
        pending.extend(node.get("Plans", ()))
    return found


# By query: the tables it may read, the index that brings it to its rows, and its arguments.
PLANS: dict[str, tuple[set[str], str, tuple[Any, ...]]] = {
    "user_history": ({"usage_logs"}, "_user_id_created_at_idx", (ANNA, 100)),
    "user_credit_summary": ({"usage_daily"}, "usage_daily_pkey", (ANNA, 30, None)),
    "user_by_action": ({"usage_daily"}, "usage_daily_pkey", (ANNA, 30, None)),
    "user_by_format_and_quality": ({"usage_daily"}, "usage_daily_pkey", (ANNA, 3660, None)),
    "user_daily": ({"usage_daily"}, "usage_daily_pkey", (ANNA, 30, None)),
    "platform_by_action": (
        {"usage_daily_actions", "usage_users_by_last_day"}, "usage_daily_actions_pkey", (7, None),
    ),
    "user_ranking": ({"usage_last_30_days", "users"}, "idx_usage_last_30_days_credits", (20,)),
    "platform_by_week": ({"usage_daily_actions"}, "usage_daily_actions_pkey", (84, None)),
}  # fmt: skip


async def test_each_query_comes_to_its_rows_by_an_index_and_no_range_reads_the_log(
    database: Database, owner: asyncpg.Connection[Any]
):
    # As many users as make the tables worth an index, and years of days.
    await owner.execute(
        """
        INSERT INTO users (id, tier) SELECT gen_random_uuid(), 'free' FROM generate_series(1, 3000);
        INSERT INTO usage_daily (user_id, day, action, uses, credits)
        SELECT id, date '2020-01-01' + n, 'action_1', 1, 1 FROM users CROSS JOIN generate_series(1, 10) AS n;
        INSERT INTO usage_last_30_days (user_id, uses, credits)
        SELECT id, 1, random() FROM users ON CONFLICT DO NOTHING;
        INSERT INTO usage_daily_actions (day, action, uses)
        SELECT date '2010-01-01' + n, 'action_' || a, 1
        FROM generate_series(1, 3000) AS n CROSS JOIN generate_series(1, 5) AS a;
        ANALYZE
        """
    )
    for identity in (ADMIN, Identity(ANNA)):
        for name, (tables, index, arguments) in PLANS.items():
            if name.startswith("platform") and not identity.admin:
                continue
            async with acting_as(database, identity, readonly=True) as connection:
                nodes = await plan(connection, statement("service", name), *arguments)

            read = {node["Relation Name"] for node in nodes if "Relation Name" in node}
            used = {node["Index Name"] for node in nodes if "Index Name" in node}
            assert {
                "usage_logs" if table.startswith("usage_logs_") else table for table in read
            } <= tables, name
            if name != "user_ranking" or identity.admin:  # one's own place is found by the key
                assert any(one.endswith(index) for one in used), (name, used)
            scanned = {node["Relation Name"] for node in nodes if node["Node Type"] == "Seq Scan"}
            assert scanned <= {"usage_users_by_last_day"}, (name, scanned)


# By index of usage_logs: a query that it serves, as seed 003 recommends it.
SERVED = {
    "idx_usage_logs_user_created":
        f"SELECT * FROM usage_logs WHERE user_id = '{ANNA}' ORDER BY created_at DESC LIMIT 100",
    "idx_usage_logs_action":
        "SELECT * FROM usage_logs WHERE action = 'action_rare' ORDER BY created_at DESC LIMIT 100",
    "idx_usage_logs_format_quality":
        "SELECT * FROM usage_logs WHERE format = 'hologram' AND quality = 'high'",
    "idx_usage_logs_created":
        "SELECT count(*) FROM usage_logs WHERE created_at BETWEEN now() - interval '1 hour' AND now()",
    "idx_usage_logs_credits":
        "SELECT * FROM usage_logs ORDER BY credits_consumed DESC LIMIT 20",
    "idx_usage_logs_key":
        "SELECT user_id FROM usage_logs WHERE key = 'a key of a caller'",
}  # fmt: skip


async def test_each_index_of_the_log_serves_a_query(
    database: Database, owner: asyncpg.Connection[Any]
):
    await owner.execute("ANALYZE usage_logs")
    partitions = dict(
        tuple(row)
        for row in await owner.fetch(
            """SELECT c.relname::text, p.relname::text FROM pg_inherits
               JOIN pg_class c ON c.oid = inhrelid JOIN pg_class p ON p.oid = inhparent WHERE p.relkind = 'I'"""
        )
    )
    for index, query in SERVED.items():
        nodes = await plan(owner, query)

        used = {partitions[node["Index Name"]] for node in nodes if "Index Name" in node}
        assert used == {index}, (index, nodes)
    recommended = await owner.fetch(
        "SELECT indexname FROM pg_indexes WHERE tablename = 'usage_logs'"
    )
    assert {row["indexname"] for row in recommended} == {*SERVED, "usage_logs_pkey"}
