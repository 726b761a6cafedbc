"""Migration 011 (seed 004): rows of legacy feature usage are brought over, all of them, and go back."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import asyncpg
import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory

from cli.main import run
from quota.client import Quota
from quota.rules import Rules
from quota.values import parse_user_id
from service.database import Database
from service.legacy import compare_legacy, legacy_brought_over
from service.loading import DatabaseLoader
from service.migrations import MigrationError, current, downgrade, printed, require_current, upgrade
from service.quarantine import REFUSED, Quarantined, Retrier
from service.schema_check import CONFLICT, LEGACY, MISSING, check_schema, require_room
from service.tiers import apply_rules
from service.urls import sqlalchemy_url
from service.verify import Verifier
from worker.deps import Deps

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]

ROOT = Path(__file__).parents[2]
SCRIPTS = ScriptDirectory.from_config(Config(toml_file=ROOT / "pyproject.toml"))
BEFORE = str(SCRIPTS.get_revision("0008").down_revision)
SECONDS_MAX = 60
A, B = UUID(int=0xA), UUID(int=0xB)

# The forms that are found: what makes one, and what it comes to, by user, feature, units and last use.
TABLE = """
    CREATE TABLE user_feature_usage (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(), user_id uuid NOT NULL, feature_type varchar(50) NOT NULL,
        current_usage int DEFAULT 0, limit_value int, updated_at timestamptz, created_at timestamp DEFAULT '2024-01-01'
    );
    CREATE INDEX idx_feature_usage_user_id ON user_feature_usage (user_id);
    INSERT INTO user_feature_usage (user_id, feature_type, current_usage, updated_at) VALUES
        (lpad('a', 32, '0')::uuid, 'invoices', 3, '2025-03-01 10:00+02'),
        (lpad('a', 32, '0')::uuid, 'products', 4, NULL),
        (lpad('b', 32, '0')::uuid, 'invoices', 0, '2025-03-02Z');
"""
VIEW = "CREATE VIEW feature_usage AS SELECT id, user_id, feature_type AS feature_name, current_usage FROM {};"
SEED_000 = """
    CREATE TABLE feature_usage (
        id int PRIMARY KEY, user_id uuid, feature_name varchar(100), metadata jsonb, usage_count int DEFAULT 1,
        last_used timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP
    );
    CREATE INDEX idx_feature_usage_user_id ON feature_usage (user_id);
    CREATE INDEX idx_feature_usage_name ON feature_usage (feature_name);
    INSERT INTO feature_usage VALUES
        (578, lpad('a', 32, '0')::uuid, 'calendar', '{"event": 1}', 4, '2025-06-21 13:15'),
        (579, lpad('a', 32, '0')::uuid, 'calendar', '{"event": 2}', 6, '2025-06-20 13:15'),
        (580, lpad('b', 32, '0')::uuid, 'calendar', NULL, 1, '2025-06-19');
"""
OF_TABLE = [
    (A, "invoices", 3, "2025-03-01T08:00:00Z"),
    (A, "products", 4, "2024-01-01T00:00:00Z"),
    (B, "invoices", 0, "2025-03-02T00:00:00Z"),
]
OF_000 = [(A, "calendar", 10, "2025-06-21T13:15:00Z"), (B, "calendar", 1, "2025-06-19T00:00:00Z")]
FORMS = {
    "table": (TABLE, OF_TABLE),
    "table and view of it": (TABLE + VIEW.format("user_feature_usage"), OF_TABLE),
    "view of another table": (
        TABLE.replace("user_feature_usage", "usage_of_features") + VIEW.format("usage_of_features"),
        [(user, feature, units, "1970-01-01T00:00:00Z") for user, feature, units, _ in OF_TABLE],
    ),
    "table of seed 000": (SEED_000, OF_000),
    "both tables": (TABLE + SEED_000.replace("CREATE INDEX", "--"), sorted(OF_TABLE + OF_000)),
    "empty": (TABLE + "DELETE FROM user_feature_usage;", []),
    "view of that table, the other way round": (
        SEED_000 + "CREATE VIEW user_feature_usage AS SELECT * FROM feature_usage;",
        OF_000,
    ),
}
ROWS = 20_000  # of two batches and more
MANY = f"""
    CREATE TABLE user_feature_usage (
        id bigserial PRIMARY KEY, user_id text, feature_name text, usage_count bigint, last_used timestamp,
        metadata json
    );
    INSERT INTO user_feature_usage (user_id, feature_name, usage_count, last_used, metadata)
    SELECT 'user-' || n / 10, 'feature_' || n % 5, n % 7, '2025-01-01'::timestamp + n * interval '1 s',
           json_build_object('n', n, 'text', repeat('x', 150))
    FROM generate_series(1, {ROWS}) n;
"""
COUNTED = "SELECT count(*), sum(usage_count) FROM feature_usage"


@pytest.fixture
async def connection(legacy_url: str) -> AsyncIterator[Connection]:
    opened = await asyncpg.connect(legacy_url)
    yield opened
    await opened.close()


async def shape(connection: Connection) -> list[tuple[object, ...]]:
    """Every relation of the two names and what belongs to it, as a customer has it."""
    rows = await connection.fetch(
        """
        SELECT c.relname, c.relkind::text, c.relnamespace::regnamespace::text,
               ARRAY(SELECT a.attname || ' ' || format_type(a.atttypid, a.atttypmod) FROM pg_attribute a
                     WHERE a.attrelid = c.oid AND a.attnum > 0 ORDER BY a.attnum)::text,
               (SELECT count(*) FROM pg_trigger t WHERE t.tgrelid = c.oid)
        FROM pg_class c WHERE c.relname LIKE '%feature_usage%' ORDER BY 1, 3
        """
    )
    return [tuple(row) for row in rows]


async def counted(connection: Connection) -> list[tuple[object, ...]]:
    rows = await connection.fetch(
        """
        SELECT user_id, feature_name, usage_count, to_char(last_used AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')
        FROM feature_usage ORDER BY 1, 2
        """
    )
    return [tuple(row) for row in rows]


async def verified(url: str) -> int:
    """How many figures are not what they are derived from."""
    async with Database(sqlalchemy_url(url), pool_max=2) as database:
        report = await Verifier(database, None, shards=4, grace_ms=0).run()
    assert not report.findings
    return report.users


@pytest.mark.parametrize("form", FORMS)
async def test_every_legacy_form_is_brought_over_row_for_row_and_goes_back(
    form, legacy_url, connection
):
    made, expected = FORMS[form]
    await connection.execute(made)
    before = await shape(connection)

    await upgrade(legacy_url)

    assert await counted(connection) == expected
    filled = (
        "SELECT bool_and(sync_status = 'synced' AND last_synced_at <= now()) FROM feature_usage"
    )
    assert await connection.fetchval(filled) in (True, None)
    assert await verified(legacy_url) == len({user for user, *_ in expected})
    compared = await compare_legacy(connection)
    assert compared is not None
    assert compared.equal
    assert (await check_schema(legacy_url)).ready
    await downgrade(legacy_url, "base")
    assert await shape(connection) == before
    await upgrade(legacy_url)
    assert await counted(connection) == expected


BAD = """
    CREATE TABLE user_feature_usage (
        id serial PRIMARY KEY, user_id text, feature_name text, usage_count text, last_used text, metadata text
    );
    INSERT INTO user_feature_usage (user_id, feature_name, usage_count, last_used, metadata) VALUES
        ('anna', 'export', '3', '2025-01-01 12:00', '{"a": 1}'), ('anna', 'export', '4', '2025-01-02', ''),
        (NULL, 'export', '1', NULL, NULL), ('', 'export', '1', NULL, NULL), (E'a\\nb', 'export', '1', NULL, NULL),
        ('anna', NULL, '1', NULL, NULL), ('anna', 'Anki Export', '1', NULL, NULL),
        ('anna', 'a', NULL, NULL, NULL), ('anna', 'b', '-2', NULL, NULL), ('anna', 'c', '1.5', NULL, NULL),
        ('anna', 'd', 'many', NULL, NULL), ('anna', 'e', '9007199254740992', NULL, NULL),
        ('anna', 'f', 'NaN', NULL, NULL),
        ('anna', 'g', '1', 'yesterday or so', NULL), ('anna', 'h', '1', 'infinity', NULL),
        ('anna', 'i', '1', NULL, '{"broken'), ('anna', 'j', '1', NULL, '"\\u0000"');
"""
REASONS = [
    "user_id is null", "user_id: expected 1 to 200 characters, no control characters",
    "user_id: expected 1 to 200 characters, no control characters", "feature_name is null",
    "feature_name: expected 1 to 100 of a-z, 0-9, '_', '.', ':', '-', beginning with a letter",
    "usage_count is null", "usage_count is negative", "usage_count is not a whole number",
    "usage_count is not a whole number", "usage_count is above 9007199254740991",
    "usage_count is above 9007199254740991", "the last use is not an instant from 1970 on",
    "the last use is not an instant from 1970 on", "metadata is not JSON", "metadata is not JSON",
]  # fmt: skip


async def test_rows_that_are_no_use_of_anything_are_kept_aside_whole_and_listed(
    legacy_url, connection
):
    await connection.execute(BAD)
    rows = await connection.fetch("SELECT * FROM user_feature_usage ORDER BY id")

    await upgrade(legacy_url)

    anna = parse_user_id("anna").id
    assert await counted(connection) == [(anna, "export", 7, "2025-01-02T00:00:00Z")]
    assert await connection.fetchval("SELECT metadata::text FROM feature_usage") == '{"a": 1}'
    kept = await connection.fetch(
        "SELECT reason, convert_from(raw, 'UTF8') FROM quarantined_records ORDER BY id"
    )
    assert [reason for reason, _ in kept] == REASONS
    assert [json.loads(raw) for _, raw in kept] == [dict(row) for row in rows[2:]]
    legacy = await legacy_brought_over(connection)
    assert legacy is not None
    [source] = legacy.sources
    assert (source.rows, source.brought, source.rejected, source.units) == (17, 2, 15, 7)
    assert sum(one.rows for one in legacy.rejects) == 15
    await downgrade(legacy_url, "base")
    assert await connection.fetch("SELECT * FROM user_feature_usage ORDER BY id") == rows


@pytest.mark.parametrize("way", ["migrated", "printed"])
async def test_users_known_by_a_text_are_those_that_the_client_makes_of_it(
    way, legacy_url, connection
):
    names = ["Ünï", "名前", "🙂" * 50, "a b", *("x" * length for length in range(1, 201, 3))]
    names.append("6F1D0C5E-3B0A-5A7C-9D64-2F1F6A3F7C11")
    await connection.execute(
        "CREATE TABLE user_feature_usage (user_id text, feature_name text, usage_count int)"
    )
    await connection.executemany(
        "INSERT INTO user_feature_usage VALUES ($1, 'export', 1)", [(name,) for name in names]
    )

    if way == "migrated":
        await upgrade(legacy_url)
    else:
        await connection.execute(await printed(since=None))

    users = map(parse_user_id, names)
    made = await connection.fetch("SELECT id, external_id FROM users")
    assert {tuple(row) for row in made} == {(user.id, user.external_id) for user in users}


async def test_a_run_that_dies_goes_on_where_it_was_and_counts_every_row_once(
    legacy_url, connection
):
    await connection.execute(MANY)
    steps: list[str] = []

    def die(step: str, rows: int, share: float) -> None:
        steps.append(step)
        if steps.count(step) == 1:
            raise ConnectionError(step)

    for _ in range(2):
        with pytest.raises(ConnectionError):
            await upgrade(legacy_url, tell=die)
        assert await current(legacy_url) == BEFORE
    await upgrade(legacy_url, tell=die)

    assert steps.count("reading legacy rows") > 2
    expected = await connection.fetchrow(
        """
        SELECT count(DISTINCT (user_id, feature_name)), sum(usage_count)
        FROM allotment_legacy.user_feature_usage
        """
    )
    assert await connection.fetchrow(COUNTED) == expected
    await require_current(legacy_url)
    await verified(legacy_url)


async def test_a_run_that_died_can_be_taken_back(legacy_url, connection):
    await connection.execute(TABLE)
    before = await shape(connection)

    def die(*_: object) -> None:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await upgrade(legacy_url, tell=die)
    await downgrade(legacy_url, "base")

    assert await shape(connection) == before
    await connection.execute("UPDATE user_feature_usage SET current_usage = 1")


async def test_rows_that_moved_between_two_runs_are_read_anew(legacy_url, connection):
    await connection.execute(MANY + "DELETE FROM user_feature_usage WHERE id % 2 = 0")

    def die(*_: object) -> None:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await upgrade(legacy_url, tell=die)
    await connection.execute("VACUUM FULL user_feature_usage")
    await upgrade(legacy_url)

    expected = "SELECT sum(usage_count) FROM allotment_legacy.user_feature_usage"
    assert (await connection.fetchrow(COUNTED))[1] == await connection.fetchval(expected)


async def test_migrations_twice_and_at_once_bring_each_row_over_once(legacy_url, connection):
    await connection.execute(TABLE)

    await asyncio.gather(upgrade(legacy_url), upgrade(legacy_url))
    await upgrade(legacy_url)

    assert await counted(connection) == OF_TABLE


async def test_whoever_reads_goes_on_and_whoever_writes_is_refused_meanwhile(
    legacy_url, connection
):
    await connection.execute(MANY)
    loop, begun, go_on = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

    def stop(*_: object) -> None:
        loop.call_soon_threadsafe(begun.set)
        assert go_on.wait(SECONDS_MAX)

    migration = asyncio.create_task(upgrade(legacy_url, tell=stop))
    try:
        async with asyncio.timeout(SECONDS_MAX):
            await begun.wait()
            async with connection.transaction():
                await connection.execute("SET LOCAL lock_timeout = '1s'")
                read = await connection.fetchval("SELECT count(*) FROM user_feature_usage")
            with pytest.raises(asyncpg.ReadOnlySQLTransactionError, match="being brought over"):
                await connection.execute("UPDATE user_feature_usage SET usage_count = 1")
    finally:
        go_on.set()
        await migration

    assert read == ROWS


async def test_what_was_used_since_goes_back_with_the_rows_and_is_not_counted_twice(
    legacy_url, connection
):
    await connection.execute(SEED_000)
    await upgrade(legacy_url)
    used = """
        UPDATE feature_usage SET usage_count = usage_count + 5, last_used = last_used + interval '1 day'
        WHERE user_id = $1;
    """
    await connection.execute(used, A)
    await connection.execute(
        "INSERT INTO feature_usage (user_id, feature_name, usage_count) VALUES ($1, 'export', 2)", B
    )

    await downgrade(legacy_url, BEFORE)  # ours stays, with what was used since
    assert [row[:3] for row in await counted(connection)] == [
        (A, "calendar", 5),
        (B, "export", 2),
    ]
    await upgrade(legacy_url)
    assert [row[:3] for row in await counted(connection)] == [
        (A, "calendar", 15),
        (B, "calendar", 1),
        (B, "export", 2),
    ]
    await connection.execute(used, A)
    await downgrade(legacy_url, "base")

    rows = await connection.fetch(
        "SELECT id, user_id, feature_name, usage_count, last_used::text FROM feature_usage ORDER BY id"
    )
    assert [tuple(row)[:4] for row in rows] == [
        (578, A, "calendar", 14),  # the latest of its user and feature
        (579, A, "calendar", 6),
        (580, B, "calendar", 1),
        (581, B, "export", 2),
    ]
    assert rows[0]["last_used"] == "2025-06-23 13:15:00"
    await upgrade(legacy_url)
    assert (await connection.fetchrow(COUNTED))[1] == 23


async def test_use_that_a_view_can_not_take_back_is_kept_for_the_next_time(legacy_url, connection):
    await connection.execute(FORMS["view of another table"][0])
    await upgrade(legacy_url)
    await connection.execute("UPDATE feature_usage SET usage_count = usage_count + 5")

    await downgrade(legacy_url, "base")

    kept = "SELECT sum(usage_count) FROM allotment_legacy.uses_since"
    assert await connection.fetchval(kept) == 15
    assert await connection.fetchval("SELECT sum(current_usage) FROM feature_usage") == 7
    await upgrade(legacy_url)
    assert (await connection.fetchrow(COUNTED))[1] == 22


async def test_rows_meet_what_users_used_already(legacy_url, connection):
    await upgrade(legacy_url, BEFORE)
    await connection.execute(
        "INSERT INTO users (id, tier, timezone) VALUES ($1, 'pro', 'Asia/Kathmandu')", A
    )
    await connection.execute(
        "INSERT INTO usage_logs (user_id, action, amount, credits_consumed) VALUES ($1, 'invoices', 20, 0)",
        A,
    )
    await connection.execute(
        "INSERT INTO feature_usage (user_id, feature_name, usage_count) VALUES ($1, 'invoices', 20)",
        A,
    )
    await connection.execute(
        """
        INSERT INTO usage_counters
        SELECT id, 'invoices', s.hour, 20, s.day, 20, s.week, 20, s.month, 20, s.year, 20,
               date_trunc('milliseconds', anchor), 20, 20
        FROM users, LATERAL (
            SELECT date_trunc('hour', now(), timezone) AS hour, date_trunc('day', now(), timezone) AS day,
                   date_trunc('week', now(), timezone) AS week, date_trunc('month', now(), timezone) AS month,
                   date_trunc('year', now(), timezone) AS year
        ) s
        """
    )
    await connection.execute(TABLE.replace("CREATE INDEX", "--"))

    await upgrade(legacy_url)

    assert [row[:3] for row in await counted(connection)] == [
        (A, "invoices", 23),
        (A, "products", 4),
        (B, "invoices", 0),
    ]
    assert await connection.fetchval("SELECT array_agg(DISTINCT user_id) FROM stale_users") == [A]
    assert await connection.fetch("SELECT id, tier FROM users ORDER BY id") == [
        (A, "pro"),
        (B, "free"),
    ]
    await verified(legacy_url)


@pytest.mark.parametrize("form", ["nothing", "table and view of it", "table of seed 000"])
async def test_the_printed_sql_does_the_same(form, legacy_url, connection):
    made, expected = FORMS.get(form, ("SELECT", []))
    await connection.execute(made)

    await connection.execute(await printed(since=None))

    assert (await check_schema(legacy_url)).ready
    assert await counted(connection) == expected
    await verified(legacy_url)


async def test_a_printed_part_goes_on_from_its_revision(legacy_url, connection):
    await upgrade(legacy_url, BEFORE)
    await connection.execute(TABLE.replace("CREATE INDEX", "--"))

    await connection.execute(await printed(since=BEFORE))

    await require_current(legacy_url)
    assert await counted(connection) == OF_TABLE


async def test_a_check_tells_what_is_legacy_what_is_missing_and_what_is_in_the_way(
    legacy_url, connection
):
    await connection.execute(TABLE + "CREATE VIEW feature_usage AS SELECT 1 AS nothing")
    await connection.execute("CREATE TABLE users (id int)")

    checked = await check_schema(legacy_url)

    assert not checked.ready
    assert [one.name for one in checked.of(LEGACY)] == ["user_feature_usage"]
    assert {one.name for one in checked.of(CONFLICT)} == {"users", "feature_usage"}
    assert "usage_logs" in {one.name for one in checked.of(MISSING)}
    with pytest.raises(MigrationError, match=r"relation users \(not made by Allotment"):
        await require_room(legacy_url)
    await connection.execute("DROP TABLE users")
    with pytest.raises(
        MigrationError, match="feature_usage: can not be brought over without user_id"
    ):
        await upgrade(legacy_url)


async def test_the_version_table_of_another_application_is_in_the_way(legacy_url, connection):
    await connection.execute("CREATE TABLE alembic_version (version_num varchar(32))")
    await connection.execute("INSERT INTO alembic_version VALUES ('010')")

    with pytest.raises(MigrationError, match=r"alembic_version \(at 010, which is not of this"):
        await require_room(legacy_url)


async def test_a_check_finds_what_was_dropped_or_changed_since(legacy_url, connection):
    await upgrade(legacy_url)
    await connection.execute(
        """
        DROP TABLE stale_users;
        ALTER TABLE users DROP COLUMN status, ALTER COLUMN username TYPE varchar(9);
        DROP INDEX idx_users_tier;
        CREATE TABLE of_a_customer (id int);
        """
    )

    checked = await check_schema(legacy_url)

    assert not checked.ready
    assert {(one.kind, one.name) for one in checked.of(MISSING)} == {
        ("table", "stale_users"),
        ("column", "users.status"),
        ("default", "users.status"),
        ("index", "users.idx_users_tier"),
    }
    [changed] = checked.of(CONFLICT)
    assert changed.name == "users.username"


@pytest.fixture
async def database_url(legacy_url: str, connection: Connection) -> str:
    """A database with legacy rows of a user, in the place of the empty one that `deps` works on."""
    await connection.execute(
        """
        CREATE TABLE user_feature_usage (user_id text, feature_name text, usage_count int);
        INSERT INTO user_feature_usage VALUES ('anna', 'tokens', 97);
        """
    )
    await upgrade(legacy_url)
    return legacy_url


async def test_legacy_use_counts_in_lifetime_limits_and_tiers_come_afterwards(
    deps: Deps, database_url, connection
):
    limits = {"tokens": [{"max": 100, "per": "lifetime"}, {"max": 10, "per": "day"}]}
    rules = Rules.from_document({"default_tier": "free", "tiers": {"free": {"limits": limits}}})
    await apply_rules(deps.database, rules)
    loader = DatabaseLoader(deps.database, deps.redis, auto_provision=True, dedupe_ms=60_000)
    async with Quota(
        deps.redis, prefix=deps.keys.prefix, shards=deps.settings.shards, loader=loader
    ) as quota:
        first = await quota.consume("anna", "tokens", 3)
        second = await quota.consume("anna", "tokens", 1)

    assert first.allowed
    assert second.code == "limit_exceeded"
    assert second.limit == 100


async def test_a_legacy_row_that_is_kept_aside_can_not_be_retried_and_keeps_its_reason(
    deps: Deps, database_url, connection
):
    row = await connection.fetchrow(
        """
        INSERT INTO quarantined_records (source, place, raw, reason)
        VALUES ('legacy:user_feature_usage', '(0,1)', '{}', 'user_id is null') RETURNING *
        """
    )
    async with Quota(deps.redis, prefix=deps.keys.prefix, shards=deps.settings.shards) as quota:
        tried = await Retrier(deps.database, deps.redis, deps.keys, quota).retry(
            Quarantined(**dict(row))
        )

    assert (tried.outcome, tried.reason) == (REFUSED, "user_id is null")
    assert await connection.fetchval("SELECT reason FROM quarantined_records") == "user_id is null"


async def test_the_first_tiers_take_users_of_legacy_rows_whatever_they_are_called(
    database_url, connection
):
    rules = Rules.from_document({"default_tier": "basic", "tiers": {"basic": {}, "pro": {}}})
    async with Database(sqlalchemy_url(database_url), pool_max=2) as database:
        await apply_rules(database, rules)

    assert await connection.fetchval("SELECT tier FROM users") == "basic"


class Commands:
    """The command line in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *words: str) -> tuple[int, Any]:
        code = run([*words, "--json"])
        return code, json.loads(self._capsys.readouterr().out)


@pytest.fixture
def commands(
    legacy_url: str,
    redis_url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Commands:
    monkeypatch.setenv("DATABASE_URL", legacy_url)
    monkeypatch.setenv("REDIS_URL", redis_url)
    return Commands(capsys)


@pytest.fixture
async def bad_rows(connection: Connection) -> None:
    await connection.execute(BAD)


def test_the_commands_check_migrate_list_and_verify(bad_rows, commands):
    assert commands("check-schema")[0] == 1
    assert commands("migrate", "--verify")[0] == 2  # it was not migrated

    code, done = commands("migrate")

    assert code == 0
    assert done["legacy"]["sources"] == [
        {"name": "user_feature_usage", "rows": 17, "brought": 2, "rejected": 15, "units": 7}
    ]
    assert sum(one["rows"] for one in done["legacy"]["rejects"]) == 15
    assert commands("check-schema") == (0, commands("check-schema")[1])
    assert commands("migrate", "--verify")[1]["equal"]
    code, listed = commands("quarantine", "ls")
    assert listed["total"] == 15
    [first, *_] = listed["records"]
    assert first["reason"] == "user_id is null"


def test_a_verification_tells_what_differs(bad_rows, commands, legacy_url):
    commands("migrate")

    async def falsify() -> None:
        connection = await asyncpg.connect(legacy_url)
        await connection.execute("UPDATE legacy_feature_usage SET units = 6")
        await connection.close()

    asyncio.run(falsify())
    code, compared = commands("migrate", "--verify")

    assert code == 1
    assert [(one["legacy"], one["brought"]) for one in compared["unequal"]] == [(7, 6)]


def test_the_sql_is_printed_from_where_the_database_is_or_from_nothing(commands):
    code, asked = commands("migrate", "--sql")
    _, named = commands("migrate", "--sql", "--from", "nothing")

    assert code == 0
    assert asked == named
    assert "CREATE TABLE usage_logs" in asked["sql"]
    assert commands("migrate", "--sql", "--verify")[0] == 2
    assert commands("migrate", "--sql", "--from", "010")[0] == 2
