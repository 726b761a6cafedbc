"""Migration 011 (seed 004) of a database that is in use: whose tables belong together, and are written to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import asyncpg
import pytest

from service.legacy import Compared, compare_legacy, legacy_brought_over
from service.migrations import MigrationError, current, downgrade, printed, upgrade
from service.schema_check import CONFLICT, LEGACY, check_schema, require_room

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]

A, B = UUID(int=0xA), UUID(int=0xB)
TABLE = """
    CREATE TABLE {} (user_id uuid, feature_name text, usage_count int, last_used timestamptz DEFAULT '2025-01-01Z');
    INSERT INTO {} VALUES (lpad('a', 32, '0')::uuid, 'invoices', 3);
"""
LEGACY_TABLE = TABLE.format("user_feature_usage", "user_feature_usage")
BASE = TABLE.format("base", "base")
PROFILES = """
    CREATE TABLE profiles (id uuid PRIMARY KEY, name text);
    INSERT INTO profiles VALUES (lpad('a', 32, '0')::uuid), (lpad('b', 32, '0')::uuid);
"""
OF_PROFILES = "ADD FOREIGN KEY (user_id) REFERENCES profiles (id) ON DELETE CASCADE"
COUNTED = "SELECT user_id, feature_name, usage_count FROM feature_usage ORDER BY 1, 2"


@pytest.fixture
async def connection(legacy_url: str) -> AsyncIterator[Connection]:
    opened = await asyncpg.connect(legacy_url)
    yield opened
    await opened.close()


async def counted(connection: Connection) -> list[tuple[object, ...]]:
    return [tuple(row) for row in await connection.fetch(COUNTED)]


async def compared(connection: Connection) -> Compared:
    found = await compare_legacy(connection)
    assert found is not None
    return found


def die(*_: object) -> None:
    raise ConnectionError


async def test_users_can_still_be_deleted_and_their_rows_go_with_them(legacy_url, connection):
    await connection.execute(PROFILES + LEGACY_TABLE)
    await connection.execute(f"ALTER TABLE user_feature_usage {OF_PROFILES}")
    await upgrade(legacy_url)

    await connection.execute("DELETE FROM profiles WHERE id = $1", B)
    await connection.execute("DELETE FROM profiles WHERE id = $1", A)

    found = await compared(connection)
    assert found.equal
    assert found.deleted == {"user_feature_usage": 1}
    assert await counted(connection) == [(A, "invoices", 3)]
    with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
        await connection.execute("DELETE FROM allotment_legacy.user_feature_usage")
    await connection.execute("UPDATE legacy_feature_usage SET units = 4")
    assert not (await compared(connection)).equal


async def test_a_user_who_is_deleted_meanwhile_does_not_stop_the_migration(legacy_url, connection):
    await connection.execute(PROFILES + LEGACY_TABLE)
    await connection.execute(f"ALTER TABLE user_feature_usage {OF_PROFILES}")
    with pytest.raises(ConnectionError):
        await upgrade(legacy_url, tell=die)

    await connection.execute("DELETE FROM profiles")
    await upgrade(legacy_url)

    assert (await compared(connection)).equal


async def test_what_a_trigger_of_the_application_writes_is_refused(legacy_url, connection):
    await connection.execute(PROFILES + LEGACY_TABLE)
    await connection.execute(
        """
        CREATE TABLE devices (profile uuid REFERENCES profiles ON DELETE CASCADE);
        INSERT INTO devices SELECT id FROM profiles;
        CREATE FUNCTION count_device() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN DELETE FROM allotment_legacy.user_feature_usage WHERE user_id = OLD.profile; RETURN OLD; END $$;
        CREATE TRIGGER counts BEFORE DELETE ON devices FOR EACH ROW EXECUTE FUNCTION count_device();
        """
    )
    await upgrade(legacy_url)

    for deleting in ("DELETE FROM devices", "DELETE FROM profiles"):
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            await connection.execute(deleting)


VIEW = "CREATE VIEW {} AS SELECT * FROM {};"
ONCE = {
    "a view of a view": BASE
    + VIEW.format("feature_usage", "base")
    + VIEW.format("user_feature_usage", "feature_usage"),
    "a view of a view, the other way round": BASE
    + VIEW.format("user_feature_usage", "base")
    + VIEW.format("feature_usage", "user_feature_usage"),
    "two views of a table": BASE
    + VIEW.format("user_feature_usage", "base")
    + VIEW.format("feature_usage", "base"),
    "a view of other columns": LEGACY_TABLE
    + "CREATE VIEW feature_usage AS SELECT user_id, sum(usage_count) AS total FROM user_feature_usage GROUP BY 1",
    "a view with what is looked up": PROFILES
    + LEGACY_TABLE
    + f"ALTER TABLE user_feature_usage {OF_PROFILES};"
    + "CREATE VIEW feature_usage AS"
    + " SELECT p.name, f.usage_count FROM user_feature_usage f JOIN profiles p ON p.id = f.user_id",
    "a view of it and of what adds nothing": LEGACY_TABLE
    + "CREATE TABLE more AS TABLE user_feature_usage WITH NO DATA;"
    + "CREATE VIEW feature_usage AS TABLE user_feature_usage UNION ALL TABLE more",
}


@pytest.mark.parametrize("form", ONCE)
async def test_views_of_what_is_read_are_not_counted_again(form, legacy_url, connection):
    await connection.execute(ONCE[form])

    checked = await check_schema(legacy_url)
    await require_room(legacy_url)
    await upgrade(legacy_url)

    assert not checked.of(CONFLICT)
    assert len(checked.of(LEGACY)) == 2
    assert await counted(connection) == [(A, "invoices", 3)]
    assert (await compared(connection)).equal
    await downgrade(legacy_url, "base")
    await upgrade(legacy_url)
    assert await counted(connection) == [(A, "invoices", 3)]


MORE = {
    "with rows of another table": LEGACY_TABLE
    + "CREATE TABLE archive AS SELECT user_id, 'archived' AS feature_name, 1 AS usage_count FROM user_feature_usage;"
    + "CREATE VIEW feature_usage AS SELECT user_id, feature_name, usage_count FROM user_feature_usage"
    + " UNION ALL TABLE archive",
    "of which nobody can tell": LEGACY_TABLE
    + "CREATE TABLE archive AS TABLE user_feature_usage;"
    + "CREATE VIEW feature_usage AS"
    + " SELECT usage_count FROM user_feature_usage UNION ALL SELECT usage_count FROM archive",
    "of other rows of the same table": BASE
    + "CREATE VIEW user_feature_usage AS SELECT * FROM base WHERE usage_count > 3;"
    + VIEW.format("feature_usage", "base"),
}


@pytest.mark.parametrize("form", MORE)
async def test_a_view_that_shows_more_than_what_is_read_is_refused(form, legacy_url, connection):
    await connection.execute(MORE[form])

    with pytest.raises(MigrationError, match="both can not be added up"):
        await require_room(legacy_url)
    with pytest.raises(MigrationError, match="both can not be added up"):
        await upgrade(legacy_url)
    with pytest.raises(asyncpg.PostgresError, match="both can not be added up"):
        await connection.execute(await printed(since=None))

    assert await current(legacy_url) is None


async def test_tables_of_another_owner_are_refused_before_anything_changes(legacy_url, connection):
    other, migrating = f"other_{uuid4().hex}", f"migrating_{uuid4().hex}"
    await connection.execute(LEGACY_TABLE)
    name = urlsplit(legacy_url).path[1:]
    await connection.execute(
        f"""
        CREATE ROLE {other}; CREATE ROLE {migrating} LOGIN PASSWORD 'x' CREATEROLE;
        ALTER TABLE user_feature_usage OWNER TO {other};
        GRANT ALL ON user_feature_usage TO {migrating};
        GRANT ALL ON SCHEMA public TO {migrating}; GRANT CREATE ON DATABASE {name} TO {migrating};
        """
    )
    url = legacy_url.replace("postgres@", f"{migrating}:x@")
    try:
        [conflict] = (await check_schema(url)).of(CONFLICT)
        with pytest.raises(MigrationError, match=f"belongs to {other}"):
            await upgrade(url)
        assert await current(url) is None
    finally:
        await connection.execute(
            f"DROP OWNED BY {other}, {migrating} CASCADE; DROP ROLE {other}, {migrating}"
        )

    assert conflict.name == "user_feature_usage"
    assert f"user_feature_usage belongs to {other}" in conflict.note


async def test_the_table_of_a_view_is_not_written_to_either_but_what_is_looked_up_is(
    legacy_url, connection
):
    await connection.execute(PROFILES + BASE + f"ALTER TABLE base {OF_PROFILES};")
    await connection.execute(
        "CREATE VIEW feature_usage AS SELECT b.* FROM base b JOIN profiles p ON p.id = b.user_id"
    )
    with pytest.raises(ConnectionError):
        await upgrade(legacy_url, tell=die)

    with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
        await connection.execute("UPDATE base SET usage_count = 50")
    await connection.execute("UPDATE profiles SET name = 'anna'")
    await upgrade(legacy_url)

    assert await counted(connection) == [(A, "invoices", 3)]
    await connection.execute("UPDATE base SET usage_count = 50")  # the application's own table


async def test_a_table_with_counts_is_no_table_that_is_looked_up(legacy_url, connection):
    await connection.execute(
        """
        CREATE TABLE totals (id int PRIMARY KEY, user_id uuid, usage_count int);
        CREATE TABLE features (total int REFERENCES totals, feature_name text);
        INSERT INTO totals VALUES (1, lpad('a', 32, '0')::uuid, 3); INSERT INTO features VALUES (1, 'invoices');
        CREATE VIEW feature_usage AS SELECT * FROM totals t JOIN features f ON f.total = t.id;
        """
    )
    with pytest.raises(ConnectionError):
        await upgrade(legacy_url, tell=die)

    with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
        await connection.execute("UPDATE totals SET usage_count = 50")


PARTITIONED = """
    CREATE TABLE user_feature_usage (user_id text, feature_name text, usage_count int, last_used timestamp)
        PARTITION BY LIST (feature_name);
    CREATE TABLE of_a PARTITION OF user_feature_usage FOR VALUES IN ('a');
    CREATE TABLE of_export PARTITION OF user_feature_usage FOR VALUES IN ('export');
    INSERT INTO user_feature_usage VALUES
        ('anna', 'a', 1, '2025-01-01'), ('anna', 'export', 5, '2025-01-01'), ('anna', 'export', NULL, '2025-02-01');
"""


async def test_partitions_are_not_written_to_and_get_back_what_was_used_since(
    legacy_url, connection
):
    await connection.execute(PARTITIONED)
    with pytest.raises(ConnectionError):
        await upgrade(legacy_url, tell=die)
    with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
        await connection.execute("UPDATE of_export SET usage_count = 50")
    await upgrade(legacy_url)
    await connection.execute("UPDATE feature_usage SET usage_count = usage_count + 7")

    await downgrade(legacy_url, "base")

    rows = await connection.fetch(
        "SELECT feature_name, usage_count FROM user_feature_usage ORDER BY 1, 2"
    )
    assert [tuple(row) for row in rows] == [("a", 8), ("export", 12), ("export", None)]
    await connection.execute("UPDATE of_export SET usage_count = 50")


async def test_rows_are_known_by_their_content_once_they_have_moved(legacy_url, connection):
    await connection.execute(
        """
        CREATE TABLE user_feature_usage (user_id text, feature_name text, usage_count int, last_used timestamptz);
        INSERT INTO user_feature_usage SELECT 'gone', 'x', 1, now() FROM generate_series(1, 3);
        INSERT INTO user_feature_usage VALUES
            ('anna', 'export', 5, '2025-01-01'), ('anna', 'export', NULL, '2025-02-01');
        DELETE FROM user_feature_usage WHERE user_id = 'gone';
        """
    )
    await upgrade(legacy_url)
    await connection.execute("VACUUM FULL allotment_legacy.user_feature_usage")
    await connection.execute("SET timezone = 'Asia/Kathmandu'")

    assert (await compared(connection)).equal
    await connection.execute("UPDATE feature_usage SET usage_count = usage_count + 7")
    await downgrade(legacy_url, "base")

    rows = await connection.fetch("SELECT usage_count FROM user_feature_usage ORDER BY 1")
    assert [row[0] for row in rows] == [12, None]


async def test_the_name_is_not_written_to_until_all_rows_are_there(legacy_url, connection):
    await connection.execute(TABLE.format("feature_usage", "feature_usage"))
    with pytest.raises(ConnectionError):
        await upgrade(legacy_url, tell=die)

    with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
        await connection.execute("UPDATE feature_usage SET usage_count = usage_count + 1")
    await upgrade(legacy_url)

    await connection.execute("UPDATE feature_usage SET usage_count = usage_count + 1")
    assert await counted(connection) == [(A, "invoices", 4)]


async def test_what_does_not_fit_its_row_stays_apart_and_the_rest_goes_back(legacy_url, connection):
    await connection.execute(
        LEGACY_TABLE + "INSERT INTO user_feature_usage VALUES (lpad('b', 32, '0')::uuid, 'a', 1);"
        "ALTER TABLE user_feature_usage ADD CHECK (usage_count <> 99)"
    )
    await upgrade(legacy_url)
    await connection.execute(
        """
        UPDATE feature_usage SET usage_count = usage_count + 3000000000 WHERE feature_name = 'invoices';
        UPDATE feature_usage SET usage_count = usage_count + 1 WHERE feature_name = 'a';
        INSERT INTO users (id, external_id, tier) VALUES (lpad('c', 32, '0')::uuid, 'carla', 'free');
        INSERT INTO feature_usage (user_id, feature_name, usage_count)
        VALUES (lpad('c', 32, '0')::uuid, 'a', 5), (lpad('c', 32, '0')::uuid, 'b', 99);
        """
    )
    before = await counted(connection)

    await downgrade(legacy_url, "base")

    rows = await connection.fetch(
        "SELECT feature_name, usage_count FROM user_feature_usage ORDER BY 1, 2"
    )
    assert [tuple(row) for row in rows] == [("a", 2), ("a", 5), ("invoices", 3)]
    since = "SELECT feature_name, usage_count FROM allotment_legacy.uses_since ORDER BY 1"
    assert [tuple(row) for row in await connection.fetch(since)] == [
        ("b", 99),
        ("invoices", 3000000000),
    ]
    await upgrade(legacy_url)
    assert await counted(connection) == before
    assert (
        await connection.fetchval("SELECT external_id FROM users WHERE id = $1", UUID(int=0xC))
        == "carla"
    )


async def test_rows_that_come_to_more_than_a_count_can_be_are_kept_aside(legacy_url, connection):
    await connection.execute(
        """
        CREATE TABLE user_feature_usage (user_id text, feature_name text, usage_count bigint, t int);
        INSERT INTO user_feature_usage VALUES
            ('anna', 'x', 9007199254740991, 42), ('bob', 'y', 1, 0), ('anna', 'x', 1, NULL), ('bob', 'z', -1, 7);
        """
    )

    await upgrade(legacy_url)

    assert [row[1:] for row in await counted(connection)] == [("y", 1)]
    kept = await connection.fetch(
        "SELECT convert_from(raw, 'UTF8') FROM quarantined_records ORDER BY id"
    )
    assert [json.loads(row[0])["t"] for row in kept] == [42, None, 7]
    assert (await compared(connection)).equal


async def test_a_database_of_another_encoding_is_refused(legacy_url, connection):
    name = f"latin_{uuid4().hex}"
    await connection.execute(
        f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'"
    )
    url = urlsplit(legacy_url)._replace(path=f"/{name}").geturl()
    try:
        with pytest.raises(MigrationError, match="encoding \\(is LATIN1, needs UTF8"):
            await require_room(url)
        with pytest.raises(MigrationError, match="has the encoding LATIN1"):
            await upgrade(url)
    finally:
        await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


async def test_a_user_whom_somebody_makes_meanwhile_is_no_obstacle(legacy_url, connection):
    await connection.execute(LEGACY_TABLE)
    await upgrade(legacy_url, "0007")
    other = await asyncpg.connect(legacy_url)
    transaction = other.transaction()
    await transaction.start()
    await other.execute("INSERT INTO users (id, tier) VALUES ($1, 'free')", A)

    migration = asyncio.create_task(upgrade(legacy_url))
    waiting = """
        SELECT EXISTS (SELECT FROM pg_stat_activity
                       WHERE wait_event_type = 'Lock' AND datname = current_database())
    """
    async with asyncio.timeout(60):
        while not await connection.fetchval(waiting):
            pass
    await transaction.commit()
    await other.close()
    await migration

    legacy = await legacy_brought_over(connection)
    assert legacy is not None
    assert legacy.users_made == 0
    assert await counted(connection) == [(A, "invoices", 3)]


async def test_users_who_were_not_known_are_counted(legacy_url, connection):
    await connection.execute(LEGACY_TABLE)

    await upgrade(legacy_url)

    assert (await compared(connection)).users_made == 1


SEED_004 = (
    LEGACY_TABLE
    + """
    ALTER TABLE user_feature_usage ADD COLUMN updated_at timestamptz;
    CREATE FUNCTION update_feature_usage_timestamp() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN NEW.updated_at := '2025-05-05Z'; RETURN NEW; END $$;
    CREATE TRIGGER stamp BEFORE UPDATE ON user_feature_usage
    FOR EACH ROW EXECUTE FUNCTION update_feature_usage_timestamp();
    CREATE VIEW usage_alerts_view AS SELECT * FROM user_feature_usage WHERE usage_count > 2;
    CREATE FUNCTION get_current_usage_stats(p_user_id uuid) RETURNS int LANGUAGE sql AS 'SELECT 1';
    CREATE FUNCTION increment_feature_usage(p_user_id uuid, p_feature text) RETURNS int LANGUAGE sql AS 'SELECT 1';
    CREATE FUNCTION increment_feature_usage(uuid, text, bigint, jsonb) RETURNS int LANGUAGE sql AS 'SELECT 1';
"""
)
OF_SEED_004 = """
    SELECT p.oid::regprocedure::text FROM pg_proc p WHERE p.pronamespace = 'public'::regnamespace
    UNION ALL SELECT c.oid::regclass::text FROM pg_class c
    WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'v'
    ORDER BY 1
"""


@pytest.mark.parametrize("since", ["base", "0003"])
async def test_functions_and_views_of_seed_004_are_put_aside_and_come_back(
    since, legacy_url, connection
):
    if since != "base":
        await upgrade(legacy_url, since)
    await connection.execute(SEED_004)
    before = await connection.fetch(OF_SEED_004)

    checked = await check_schema(legacy_url)
    await require_room(legacy_url)
    await upgrade(legacy_url)

    assert {one.name for one in checked.of(LEGACY) if "puts it aside" in one.note} == {
        "increment_feature_usage(uuid,text)",
        "increment_feature_usage(uuid,text,bigint,jsonb)",
        "get_current_usage_stats(uuid)",
        "update_feature_usage_timestamp()",
        "usage_alerts_view",
    }
    assert await connection.fetchval("SELECT increment_feature_usage($1, 'invoices')", A) == 4
    assert (await check_schema(legacy_url)).ready
    await downgrade(legacy_url, since)
    assert await connection.fetch(OF_SEED_004) == before
    await connection.execute("UPDATE user_feature_usage SET usage_count = 4")
    stamped = await connection.fetchval("SELECT updated_at::text FROM user_feature_usage")
    assert stamped.startswith("2025-05-05")
