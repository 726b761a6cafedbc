from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.ext.asyncio import create_async_engine

from models import SQLModel
from quota.values import instant_ms, uuid7_time_ms
from service.migrations import (
    OutdatedDatabaseError,
    TableInUseError,
    current,
    downgrade,
    require_current,
    upgrade,
)
from service.urls import sqlalchemy_url

ROOT = Path(__file__).parents[2]
SECONDS_MAX = 60

# What alembic's comparison leaves out is in here too: checks, storage, the order of columns.
SCHEMA = {
    "tables": """
        SELECT c.relname, c.relkind::text, c.reloptions, pg_get_partkeydef(c.oid)
        FROM pg_class c
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm')
          AND NOT c.relispartition AND c.relname <> 'alembic_version'
        ORDER BY 1
    """,
    "columns": """
        SELECT c.relname, a.attnum, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
               a.attidentity::text, pg_get_expr(d.adbin, d.adrelid)
        FROM pg_class c
        JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
          AND NOT c.relispartition AND c.relname <> 'alembic_version'
        ORDER BY 1, 2
    """,
    "constraints": """
        SELECT c.relname, con.conname, pg_get_constraintdef(con.oid)
        FROM pg_constraint con JOIN pg_class c ON c.oid = con.conrelid
        WHERE c.relnamespace = 'public'::regnamespace
          AND NOT c.relispartition AND c.relname <> 'alembic_version'
        ORDER BY 1, 2
    """,
    "indexes": """
        SELECT c.relname, pg_get_indexdef(i.indexrelid)
        FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid
        WHERE c.relnamespace = 'public'::regnamespace
          AND NOT c.relispartition AND c.relname <> 'alembic_version'
        ORDER BY 1, 2
    """,
    "views": "SELECT viewname, definition FROM pg_views WHERE schemaname = 'public' ORDER BY 1",
    "functions": """
        SELECT p.oid::regprocedure::text, pg_get_functiondef(p.oid), acl.grantee::regrole::text
        FROM pg_proc p
        CROSS JOIN LATERAL aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) acl
        WHERE p.pronamespace = 'public'::regnamespace ORDER BY 1, 3
    """,
    "triggers": """
        SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal ORDER BY 1
    """,
    "policies": """
        SELECT tablename, policyname, cmd, roles::text, qual, with_check
        FROM pg_policies WHERE schemaname = 'public' ORDER BY 1, 2
    """,
    "privileges": """
        SELECT c.relname, c.relrowsecurity, acl.grantee::regrole::text, acl.privilege_type
        FROM pg_class c
        LEFT JOIN LATERAL aclexplode(c.relacl) acl ON acl.grantee <> c.relowner
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v')
          AND c.relname <> 'alembic_version'
        ORDER BY 1, 3, 4
    """,
}
# What the models say; the rest is SQL that the migrations alone have.
MODELED = ("tables", "columns", "constraints", "indexes")


@pytest.fixture
async def empty_url(
    copy_of: Callable[[str], AbstractAsyncContextManager[str]],
) -> AsyncIterator[str]:
    async with copy_of("template1") as url:
        yield url


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    opened = await asyncpg.connect(database_url)
    yield opened
    await opened.close()


async def schema(url: str) -> dict[str, list[tuple[object, ...]]]:
    connection = await asyncpg.connect(url)
    try:
        return {
            part: [tuple(row) for row in await connection.fetch(query)]
            for part, query in SCHEMA.items()
        }
    finally:
        await connection.close()


async def columns(
    connection: asyncpg.Connection[asyncpg.Record], table: str
) -> dict[str, tuple[str, bool, str | None]]:
    rows = await connection.fetch(
        """
        SELECT column_name, data_type, is_nullable = 'YES' AS nullable, column_default
        FROM information_schema.columns WHERE table_name = $1
        ORDER BY ordinal_position
        """,
        table,
    )
    return {name: (kind, nullable, default) for name, kind, nullable, default in rows}


async def indexes(connection: asyncpg.Connection[asyncpg.Record], table: str) -> dict[str, str]:
    rows = await connection.fetch(
        "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = $1", table
    )
    return {name: definition.partition(" USING ")[2] for name, definition in rows}


async def test_up_then_down_leaves_nothing_and_up_again_is_the_same(empty_url):
    await upgrade(empty_url)
    first = await schema(empty_url)

    await downgrade(empty_url, "base")

    assert await current(empty_url) is None
    assert await schema(empty_url) == {part: [] for part in SCHEMA}
    await upgrade(empty_url)
    assert await schema(empty_url) == first


async def test_a_downgrade_drops_partitions_and_rows_too(database_url, connection):
    await connection.execute(
        "INSERT INTO usage_logs (user_id, action) VALUES (gen_random_uuid(), 'a')"
    )

    await downgrade(database_url, "base")

    left = await connection.fetch(
        "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace"
    )
    assert {name.removesuffix("_pkc") for (name,) in left} == {"alembic_version"}


ROWS_OF_0001 = """
    INSERT INTO users (id, tier, overage_micro) VALUES
        (repeat('1', 32)::uuid, 'free', 500), (repeat('2', 32)::uuid, 'free', 0);
    INSERT INTO credit_grants (user_id, id, amount_micro, left_micro, effective_at, created_at, voided_at) VALUES
        (repeat('1', 32)::uuid, repeat('a', 32)::uuid, 1000, 0, '2025-01-01Z', '2025-01-01Z', NULL),
        (repeat('2', 32)::uuid, repeat('b', 32)::uuid, 800, 300, '2025-01-01Z', '2025-01-01Z', '2025-02-01Z');
    INSERT INTO credit_entries (user_id, grant_id, usage_id, kind, amount_micro, created_at) VALUES
        (repeat('1', 32)::uuid, repeat('a', 32)::uuid, repeat('c', 32)::uuid, 'burn', 900, '2025-01-02Z'),
        (repeat('1', 32)::uuid, NULL, repeat('c', 32)::uuid, 'burn', 600, '2025-01-02Z'),
        (repeat('1', 32)::uuid, repeat('a', 32)::uuid, NULL, 'repaid', 100, '2025-01-03Z'),
        (repeat('2', 32)::uuid, repeat('b', 32)::uuid, repeat('d', 32)::uuid, 'burn', 500, '2025-01-02Z');
    INSERT INTO usage_logs (id, user_id, action) VALUES (repeat('c', 32)::uuid, repeat('1', 32)::uuid, 'image');
"""
KEPT_OF_0001 = {
    "users": "SELECT id, tier, overage_micro FROM users ORDER BY 1",
    "grants": "SELECT user_id, id, amount_micro, left_micro, voided_at FROM credit_grants ORDER BY 1, 2",
    "entries": """SELECT user_id, grant_id, usage_id, kind, amount_micro, created_at
                  FROM credit_entries ORDER BY user_id, id""",
    "logs": "SELECT id, user_id, action FROM usage_logs",
}


async def kept(connection: asyncpg.Connection[asyncpg.Record]) -> dict[str, list[object]]:
    return {
        name: [tuple(row) for row in await connection.fetch(q)] for name, q in KEPT_OF_0001.items()
    }


async def test_the_rules_come_and_go_and_every_row_stays(empty_url):
    await upgrade(empty_url, "0001")
    shape = await schema(empty_url)
    connection = await asyncpg.connect(empty_url)
    await connection.execute(ROWS_OF_0001)
    before = await kept(connection)

    await upgrade(empty_url)
    await downgrade(empty_url, "0001")
    after = await kept(connection)
    back = await schema(empty_url)
    await upgrade(empty_url)

    entries = await connection.fetch(
        """SELECT user_id, kind, place, grant_id IS NULL AS overage, amount_micro, id, created_at
           FROM credit_entries ORDER BY user_id, created_at, kind, place"""
    )
    overage_at = await connection.fetchval("SELECT max(overage_at) FROM users")
    off = await connection.fetchval(IDENTITY_IS_OFF_BY)
    await connection.close()
    assert after == before
    assert back == shape
    assert [
        (row["kind"], row["place"], row["overage"], row["amount_micro"]) for row in entries
    ] == [
        ("granted", 0, False, 1000),
        ("burn", 0, False, 900),
        ("burn", 1, True, 600),
        ("repaid", 0, False, 100),
        ("granted", 0, False, 800),
        ("burn", 0, False, 500),
        ("voided", 0, False, 300),
    ]
    assert {row["id"].hex for row in entries if row["kind"] == "burn"} == {"c" * 32, "d" * 32}
    for row in entries:
        if row["kind"] != "burn":
            assert uuid7_time_ms(str(row["id"])) == instant_ms(row["created_at"])
    assert overage_at == datetime(2025, 1, 2, tzinfo=UTC)
    assert off == 0


# granted = burnt + left + voided - overage, summed over users
IDENTITY_IS_OFF_BY = """
    SELECT (SELECT sum(amount_micro) FILTER (WHERE kind = 'granted')
                   - sum(amount_micro) FILTER (WHERE kind IN ('burn', 'voided')) FROM credit_entries)
         - (SELECT sum(left_micro) FROM credit_grants) + (SELECT sum(overage_micro) FROM users)
"""


async def test_a_downgrade_releases_the_holds_that_are_open(database_url, connection):
    await connection.execute(
        """
        INSERT INTO users (id, tier, overage_micro) VALUES (repeat('1', 32)::uuid, 'free', 70);
        INSERT INTO credit_grants (user_id, id, amount_micro, left_micro, effective_at) VALUES
            (repeat('1', 32)::uuid, repeat('a', 32)::uuid, 1000, 100, '2025-01-01Z');
        INSERT INTO usage_counters VALUES (repeat('1', 32)::uuid, 'image', '2025-03-01 11:00Z', 5,
            '2025-03-01Z', 9, '2025-02-24Z', 9, '2025-03-01Z', 9, '2025-01-01Z', 9, '2025-03-01Z', 9, 20);
        INSERT INTO usage_windows VALUES
            (repeat('1', 32)::uuid, 'image', 3600, '2025-03-01 12:00Z', 8),
            (repeat('1', 32)::uuid, 'image', 60, '2025-03-01 12:00Z', 8);
        INSERT INTO holds (user_id, key, id, feature, amount, cost_micro, price, record, payments, windows,
                           reserved_at, expires_at, status, ended_at)
        SELECT repeat('1', 32)::uuid, status, gen_random_uuid(), 'image', 3, 450, '150/1', '[]',
               '[["aaaaaaaa-aaaa-aaaa-aaaa-aaaaaaaaaaaa", 400, true], [null, 50, true]]',
               '[[3600, 1740830400000], [60, 1740826800000]]',
               '2025-03-01 10:59Z', '2025-03-01 12:00Z', status, CASE WHEN status <> 'open' THEN now() END
        FROM unnest(ARRAY['open', 'committed']) AS status
        """
    )

    await downgrade(database_url, "0001")

    assert await connection.fetchval("SELECT left_micro FROM credit_grants") == 500
    assert await connection.fetchval("SELECT overage_micro FROM users") == 20
    counted = await connection.fetchrow(
        "SELECT hour_used, day_used, lifetime_used FROM usage_counters"
    )
    assert tuple(counted) == (5, 6, 17)
    windows = await connection.fetch("SELECT seconds, used FROM usage_windows ORDER BY 1")
    assert [tuple(row) for row in windows] == [(60, 8), (3600, 5)]  # the other was opened later


async def test_upgrading_what_is_current_changes_nothing(database_url):
    before = await schema(database_url)

    await upgrade(database_url)

    assert await schema(database_url) == before


async def test_alembic_finds_no_difference_to_the_models(database_url):
    engine = create_async_engine(sqlalchemy_url(database_url))
    options = {
        "compare_type": True,
        "compare_server_default": True,
        "include_name": lambda name, kind, _: kind != "table" or name != "usage_logs_default",
    }
    async with engine.connect() as connection:
        differences = await connection.run_sync(
            lambda sync: compare_metadata(
                MigrationContext.configure(sync, opts=options), SQLModel.metadata
            )
        )
    await engine.dispose()

    assert differences == []


async def test_tables_made_from_the_models_are_the_same_to_the_last_check(database_url, empty_url):
    engine = create_async_engine(sqlalchemy_url(empty_url))
    async with engine.begin() as connection:
        await connection.run_sync(SQLModel.metadata.create_all)
    await engine.dispose()

    migrated, made = await schema(database_url), await schema(empty_url)
    migrated["tables"] = [row for row in migrated["tables"] if row[1] != "v"]
    for part in MODELED:
        assert migrated[part] == made[part], part


async def test_every_table_that_is_needed_exists(database_url):
    tables = {row[0] for row in (await schema(database_url))["tables"]}

    assert tables >= {
        "users",
        "tiers",
        "tier_limits",
        "credit_prices",
        "outage_policies",
        "usage_logs",
        "usage_keys",
        "feature_usage",
        "usage_counters",
        "credit_grants",
        "credit_entries",
        "holds",
        "usage_refunds",
        "usage_shards",
        "quarantined_records",
    }


async def test_feature_usage_has_the_columns_of_seed_000_in_more_bits(connection):
    found = await columns(connection, "feature_usage")

    assert {name: found[name] for name in list(found)[:6]} == {
        "id": ("bigint", False, None),  # an INT in the seed; an identity column
        "user_id": ("uuid", True, None),
        "feature_name": ("character varying", True, None),
        "metadata": ("jsonb", True, None),
        "usage_count": ("bigint", True, "1"),  # an INT in the seed
        "last_used": ("timestamp with time zone", False, "now()"),
    }


async def test_feature_usage_has_the_key_and_the_indexes_of_seed_000(connection):
    assert await indexes(connection, "feature_usage") == {
        "feature_usage_pkey": "btree (id)",
        "uq_feature_usage_user_feature": "btree (user_id, feature_name)",
        "idx_feature_usage_user_id": "btree (user_id)",
        "idx_feature_usage_name": "btree (feature_name)",
    }


async def test_feature_usage_has_the_sync_columns_of_seed_004(connection):
    found = await columns(connection, "feature_usage")

    assert {"sync_status", "last_synced_at", "discrepancy_count"} <= found.keys()


async def test_a_feature_used_for_the_first_time_needs_no_more_than_its_names(connection):
    row = await connection.fetchrow(
        """
        WITH made AS (INSERT INTO users (id, tier) VALUES (gen_random_uuid(), 'free') RETURNING id)
        INSERT INTO feature_usage (user_id, feature_name) SELECT id, 'calendar' FROM made
        RETURNING id, usage_count, last_used = now() AS used_now, discrepancy_count
        """
    )

    assert tuple(row) == (1, 1, True, 0)


async def test_usage_logs_has_the_columns_of_seed_003(connection):
    found = await columns(connection, "usage_logs")

    assert {
        name: found[name]
        for name in (
            "id",
            "user_id",
            "action",
            "credits_consumed",
            "metadata",
            "created_at",
            "format",
            "quality",
        )
    } == {
        "id": ("uuid", False, "gen_random_uuid()"),
        "user_id": ("uuid", False, None),
        "action": ("text", False, None),
        "credits_consumed": ("numeric", False, "1.0"),
        "metadata": ("jsonb", True, None),
        "created_at": ("timestamp with time zone", False, "now()"),
        "format": ("text", True, None),
        "quality": ("text", True, None),
    }


async def test_usage_logs_has_the_indexes_of_seed_003(connection):
    found = await indexes(connection, "usage_logs")

    assert found == {
        "usage_logs_pkey": "btree (id, user_id, created_at)",
        "idx_usage_logs_user_created": "btree (user_id, created_at DESC)",
        "idx_usage_logs_action": "btree (action, created_at DESC)",
        "idx_usage_logs_format_quality": "btree (format, quality)",
        "idx_usage_logs_created": "btree (created_at DESC)",
        "idx_usage_logs_credits": "btree (credits_consumed DESC)",
        "idx_usage_logs_key": "btree (key) WHERE (key IS NOT NULL)",  # ours: refunds
    }


async def test_a_migration_runs_from_any_directory(empty_url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    await upgrade(empty_url)

    await require_current(empty_url)


async def test_the_url_of_sqlalchemy_will_do_too(empty_url):
    await upgrade(sqlalchemy_url(empty_url))

    await require_current(sqlalchemy_url(empty_url))


async def test_an_empty_database_is_told_to_migrate(empty_url):
    with pytest.raises(
        OutdatedDatabaseError,
        match=r"^database is at nothing, this version needs \d{4}: run `allotment migrate`$",
    ):
        await require_current(empty_url)


async def test_a_newer_database_is_not_told_to_migrate(database_url, connection):
    await connection.execute("UPDATE alembic_version SET version_num = '9999'")

    with pytest.raises(OutdatedDatabaseError, match="at 9999, which is newer than this version"):
        await require_current(database_url)


async def test_a_migration_waits_for_one_that_runs(empty_url):
    other = await asyncpg.connect(empty_url)
    await other.execute("SELECT pg_advisory_lock(1634495599, 1)")
    async with asyncio.timeout(SECONDS_MAX):
        waiting = asyncio.create_task(upgrade(empty_url))
        while not await other.fetchval(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE query LIKE 'SELECT pg_try_advisory_lock%' AND pid <> pg_backend_pid()"
            " AND datname = current_database()"
        ):
            pass

        assert not waiting.done()
        assert await current(empty_url) is None
        await other.close()
        await waiting

    await require_current(empty_url)


async def test_migrations_of_several_processes_at_once_all_succeed(empty_url):
    command = [sys.executable, "-m", "alembic", "upgrade", "head"]
    environment = {**os.environ, "DATABASE_URL": empty_url}

    started = [
        await asyncio.create_subprocess_exec(*command, cwd=ROOT, env=environment) for _ in range(3)
    ]
    async with asyncio.timeout(SECONDS_MAX):
        exits = await asyncio.gather(*(one.wait() for one in started))

    assert exits == [0, 0, 0]
    await require_current(empty_url)


async def test_databases_migrate_side_by_side_in_one_process(copy_of):
    async with copy_of("template1") as one, copy_of("template1") as other:
        await asyncio.gather(upgrade(one), upgrade(other), upgrade(one))

        await require_current(one)
        await require_current(other)


async def test_a_migration_gives_up_on_a_table_in_use_and_leaves_all_as_it_was(
    database_url, connection
):
    await downgrade(database_url, "0002")  # the last one that changes `users`
    before = await schema(database_url)
    async with connection.transaction():
        await connection.execute("LOCK TABLE users IN ACCESS SHARE MODE")

        with pytest.raises(TableInUseError, match="a table was in use"):
            await downgrade(database_url, "base", tries_max=1)

    assert await schema(database_url) == before
    assert await current(database_url) == "0002"


async def test_a_migration_comes_back_to_a_table_that_was_in_use(database_url, connection):
    observer = await asyncpg.connect(database_url)

    async def a_migration_waits() -> bool:
        return bool(await observer.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"))

    async with asyncio.timeout(SECONDS_MAX):
        async with connection.transaction():
            await connection.execute("LOCK TABLE users IN ACCESS SHARE MODE")
            migration = asyncio.create_task(downgrade(database_url, "base"))
            while not await a_migration_waits():
                pass
            while await a_migration_waits():
                pass  # it gives up by itself: nobody has to wait behind it for long
        await migration
    await observer.close()

    assert await current(database_url) is None


async def test_what_was_used_before_there_were_rollups_is_to_be_summed_up(empty_url):
    await upgrade(empty_url, "0003")
    connection = await asyncpg.connect(empty_url)
    await connection.execute("INSERT INTO users (id, tier) VALUES (repeat('1', 32)::uuid, 'free')")

    await upgrade(empty_url)

    noted = await connection.fetchval("SELECT array_agg(user_id::text) FROM stale_rollups")
    await connection.close()
    assert noted == ["11111111-1111-1111-1111-111111111111"]
