"""`check-schema` finds whatever is missing of what migrations made."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from cli.main import run
from service.database import statement
from service.migrations import MigrationError
from service.schema_check import CONFLICT, MISSING, check_schema, objects, require_room

DROPPED = {
    "DROP POLICY own_rows ON feature_usage": ("policy", "feature_usage.own_rows"),
    "ALTER TABLE usage_logs DISABLE ROW LEVEL SECURITY": ("row security", "usage_logs"),
    "ALTER VIEW usage_alerts_view RESET (security_invoker)": ("security_invoker", "usage_alerts_view"),
    "DROP TRIGGER feature_usage_timestamp ON feature_usage": ("trigger", "feature_usage.feature_usage_timestamp"),
    "ALTER TABLE feature_usage DISABLE TRIGGER USER": ("trigger", "feature_usage.feature_usage_timestamp"),
    "ALTER TABLE users DROP CONSTRAINT users_role_known": ("check", "users.users_role_known"),
    "ALTER TABLE users ALTER timezone DROP DEFAULT": ("default", "users.timezone"),
    "ALTER TABLE usage_keys DROP CONSTRAINT usage_keys_pkey": ("primary key", "usage_keys.usage_keys_pkey"),
    "DROP FUNCTION count_usage": ("function", "count_usage(uuid, text, bigint, jsonb)"),
    "DROP FUNCTION protect_user_rows": ("function", "protect_user_rows(regclass, name)"),
    "DROP VIEW usage_alerts_view; CREATE SCHEMA other; CREATE TABLE other.usage_alerts_view (i int)":
        ("view", "usage_alerts_view"),
    "ALTER TABLE subscription_events DROP CONSTRAINT subscription_events_user_id_fkey":
        ("foreign key", "subscription_events.subscription_events_user_id_fkey"),
    "DROP TABLE stale_users": ("table", "stale_users"),
    "DROP INDEX idx_users_tier": ("index", "users.idx_users_tier"),
}  # fmt: skip


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    opened = await asyncpg.connect(database_url)
    yield opened
    await opened.close()


async def test_the_list_is_what_migrations_make(connection):
    found = {tuple(row) for row in await connection.fetch(statement("service", "schema_objects"))}

    listed = set(objects())

    assert sorted(found - listed) == [], "lines to add to service/schema_objects.txt"
    assert sorted(listed - found) == [], "lines to take out of service/schema_objects.txt"
    assert objects() == sorted(listed)


async def test_what_was_dropped_is_missing_whatever_it_is(database_url, connection):
    assert (await check_schema(database_url)).ready
    for dropping, expected in DROPPED.items():
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute(dropping)
        found = {
            tuple(row) for row in await connection.fetch(statement("service", "schema_objects"))
        }
        await transaction.rollback()

        assert expected in set(objects()) - found, dropping


async def test_a_loss_is_told_once_and_migrating_is_not_the_advice(database_url, connection):
    await connection.execute("DROP TABLE stale_users; DROP FUNCTION protect_user_rows")

    checked = await check_schema(database_url)

    assert not checked.ready
    assert {(one.kind, one.name) for one in checked.of(MISSING, CONFLICT)} == {
        ("table", "stale_users"),
        ("function", "protect_user_rows(regclass, name)"),
    }


async def test_a_column_that_nobody_fills_is_in_the_way(database_url, connection):
    await connection.execute("ALTER TABLE users ADD must text NOT NULL, ADD may text")

    [conflict] = (await check_schema(database_url)).of(CONFLICT)

    assert conflict.name == "users.must"


@pytest.mark.parametrize(
    "taken",
    [
        "CREATE TABLE of_a_customer (id int); CREATE INDEX idx_users_tier ON of_a_customer (id)",
        "CREATE FUNCTION allotment_user_id() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE FUNCTION count_usage(text) RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE TABLE feature_events (id int)",
    ],
)
async def test_names_that_are_taken_are_in_the_way(taken, copy_of):
    async with copy_of("template1") as url:
        connection = await asyncpg.connect(url)
        await connection.execute(taken)
        await connection.close()

        with pytest.raises(MigrationError, match="not made by Allotment"):
            await require_room(url)


@pytest.mark.parametrize(
    ("change", "advice"),
    [
        ("UPDATE alembic_version SET version_num = '0099'", "not ready: settle each conflict"),
        ("DROP VIEW usage_alerts_view", "not ready: restore what is missing"),
        ("UPDATE alembic_version SET version_num = '0007'", "not ready: run `allotment migrate`"),
        ("SELECT 1", "ready"),
    ],
)
def test_the_advice_fits_the_cause(change, advice, database_url, redis_url, monkeypatch, capsys):
    async def make() -> None:
        connection = await asyncpg.connect(database_url)
        await connection.execute(change)
        await connection.close()

    asyncio.run(make())
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("REDIS_URL", redis_url)

    run(["check-schema"])

    assert capsys.readouterr().out.splitlines()[-1].startswith(advice)
