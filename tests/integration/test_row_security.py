"""Who sees and writes which rows, asked through logins that own nothing and can not pass by a policy."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import asyncpg
import pytest
from sqlalchemy.exc import DBAPIError

from quota.values import parse_user_id
from service.database import Database
from service.identity import ADMIN_ROLE, USER_ROLE, Identity, acting_as
from service.migrations import downgrade, upgrade
from service.partitions import make_partitions
from service.rollups import fold_all
from service.urls import sqlalchemy_url
from worker.deps import Deps

ROLES = Path(__file__).parents[2] / "alembic" / "sql" / "0007" / "roles.sql"
ANNA, BERT = parse_user_id("anna"), parse_user_id("bert")
TABLES = """
    SELECT c.relname::text AS name, CASE c.relname WHEN 'users' THEN 'id' ELSE 'user_id' END AS whose, c.relrowsecurity
    FROM pg_class c
    WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
      AND (c.relname = 'users' OR EXISTS (
          SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = 'user_id' AND NOT a.attisdropped))
    ORDER BY 1
"""
# What no run of ours writes is filled by hand: every table that is protected has a row of each user.
FILL = """
    INSERT INTO usage_keys SELECT id, gen_random_uuid(), gen_random_uuid(), now() FROM users;
    INSERT INTO stale_users SELECT id FROM users;
    INSERT INTO usage_refunds
    SELECT id, gen_random_uuid(), 'r', gen_random_uuid(), 'k', 1, 0, 0, now() FROM users;
    INSERT INTO holds (user_id, key, id, feature, amount, cost_micro, price, record, payments, windows,
                       reserved_at, expires_at)
    SELECT id, 'k', gen_random_uuid(), 'event', 1, 0, '0/1', '[]', '[]', '[]', now(), now() FROM users;
    INSERT INTO credit_grants (user_id, id, amount_micro, left_micro, effective_at)
    SELECT id, gen_random_uuid(), 5, 5, now() FROM users;
    INSERT INTO credit_entries (user_id, id, kind, amount_micro, created_at)
    SELECT id, gen_random_uuid(), 'granted', 5, now() FROM users;
"""

FILLED = {
    *(
        "users",
        "usage_logs",
        "feature_usage",
        "usage_counters",
        "holds",
        "credit_grants",
        "credit_entries",
    ),
    *(
        "usage_refunds",
        "usage_keys",
        "stale_users",
        "usage_daily",
        "usage_last_30_days",
        "user_usage",
    ),
}

# login("role", …) -> the address of the database for a login that is a member of these roles.
Login = Callable[..., Awaitable[str]]


@pytest.fixture
async def login(database_url: str) -> AsyncIterator[Login]:
    owner = await asyncpg.connect(database_url)
    made: list[str] = []

    async def make(*roles: str, inherit: bool = True) -> str:
        name = f"test_{uuid4().hex[:12]}"
        inherits = "INHERIT" if inherit else "NOINHERIT"
        await owner.execute(f"CREATE ROLE {name} LOGIN NOBYPASSRLS {inherits} PASSWORD '{name}'")
        made.append(name)
        for role in roles:
            await owner.execute(f"GRANT {role} TO {name}")
        parts = urlsplit(database_url)
        host = parts.netloc.rpartition("@")[2]
        return parts._replace(netloc=f"{name}:{name}@{host}").geturl()

    yield make
    for name in made:
        await owner.execute(f"DROP OWNED BY {name}")
        await owner.execute(f"DROP ROLE {name}")
    await owner.close()


@pytest.fixture
async def owner(database_url: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


@pytest.fixture
async def used(deps: Deps, owner: asyncpg.Connection[Any]) -> None:
    """Two users have used the same, as far as 80 % of a limit."""
    for user in ("anna", "bert"):
        await deps.quota.record(user, {"event": 80, "unit": 1}, metadata={"of": user})
    while await deps.drain.run(seconds_max=5):
        pass
    await fold_all(deps.database, seconds_max=60)
    await owner.execute("DELETE FROM credit_entries; DELETE FROM credit_grants")
    await owner.execute(FILL)


@asynccontextmanager
async def opened(url: str, user: UUID | None = None) -> AsyncIterator[asyncpg.Connection[Any]]:
    """A connection in a transaction that is undone, for *user*."""
    connection = await asyncpg.connect(url)
    transaction = connection.transaction()
    await transaction.start()
    try:
        if user is not None:
            await connection.execute("SELECT set_config('allotment.user_id', $1, true)", str(user))
        yield connection
    finally:
        await transaction.rollback()
        await connection.close()


async def tables_of(owner: asyncpg.Connection[Any]) -> dict[str, str]:
    return {row["name"]: row["whose"] for row in await owner.fetch(TABLES)}


async def test_every_table_with_rows_of_users_has_its_policies(owner: asyncpg.Connection[Any]):
    """One that is added later needs ``SELECT protect_user_rows('name')`` in its migration."""
    policies = await owner.fetch(
        "SELECT tablename::text AS name, policyname::text AS policy, roles::text FROM pg_policies ORDER BY 1, 2"
    )
    found: dict[str, list[tuple[str, str]]] = {}
    for name, policy, roles in policies:
        found.setdefault(name, []).append((policy, roles))

    rows = await owner.fetch(TABLES)

    assert {row["name"] for row in rows if not row["relrowsecurity"]} == set()
    expected = [("all_rows", f"{{{ADMIN_ROLE}}}"), ("own_rows", f"{{{USER_ROLE}}}")]
    assert found == {row["name"]: expected for row in rows}


async def test_every_view_runs_with_the_rights_of_who_asks(owner: asyncpg.Connection[Any]):
    views = await owner.fetch(
        "SELECT relname, reloptions FROM pg_class WHERE relkind = 'v' AND relnamespace = 'public'::regnamespace"
    )

    assert {row["relname"] for row in views} >= {"feature_events", "usage_alerts_view"}
    assert all("security_invoker=true" in (row["reloptions"] or []) for row in views)


@pytest.mark.usefixtures("used")
async def test_a_user_sees_own_rows_of_every_table_and_an_admin_all(
    login: Login, owner: asyncpg.Connection[Any]
):
    tables, user_url, admin_url = (
        await tables_of(owner),
        await login(USER_ROLE),
        await login(ADMIN_ROLE),
    )
    seen: dict[str, dict[str, set[Any]]] = {}
    for who, url, user in (
        ("anna", user_url, ANNA.id),
        ("nobody", user_url, None),
        ("admin", admin_url, None),
    ):
        async with opened(url, user) as connection:
            seen[who] = {
                table: {row[0] for row in await connection.fetch(f"SELECT {whose} FROM {table}")}
                for table, whose in tables.items()
            }
    filled = {table for table, users in seen["admin"].items() if users}

    assert filled >= FILLED
    for table in filled:
        assert (seen["admin"][table], seen["anna"][table]) == ({ANNA.id, BERT.id}, {ANNA.id}), table
    assert set().union(*seen["nobody"].values()) == set()


@pytest.mark.usefixtures("used")
async def test_views_and_functions_show_no_more_than_the_tables(login: Login):
    user_url, admin_url = await login(USER_ROLE), await login(ADMIN_ROLE)
    async with opened(user_url, ANNA.id) as connection:
        for view in ("feature_events", "usage_alerts_view"):
            users = {row["user_id"] for row in await connection.fetch(f"SELECT * FROM {view}")}
            assert users == {ANNA.id}, view
        own = await connection.fetch("SELECT * FROM get_current_usage_stats($1)", ANNA.id)
        others = await connection.fetch("SELECT * FROM get_current_usage_stats($1)", BERT.id)
    async with opened(admin_url) as connection:
        alerts = await connection.fetch("SELECT user_id FROM usage_alerts_view")
        theirs = await connection.fetch("SELECT * FROM get_current_usage_stats($1)", BERT.id)

    assert {row["feature"] for row in own if row["used"]} == {"event", "unit"}
    assert others == []
    assert {row["user_id"] for row in alerts} == {ANNA.id, BERT.id}
    assert {row["feature"] for row in theirs if row["used"]} == {"event", "unit"}


@pytest.mark.usefixtures("used")
async def test_a_user_writes_no_table(login: Login, owner: asyncpg.Connection[Any]):
    """What is counted comes from the log, the records from the worker: a row of one's own would be a bill forged."""
    url = await login(USER_ROLE)
    for table, whose in (await tables_of(owner)).items():
        for statement in (
            f"INSERT INTO {table} DEFAULT VALUES",
            f"UPDATE {table} SET {whose} = {whose}",
            f"DELETE FROM {table}",
            f"TRUNCATE {table}",
        ):
            async with opened(url, ANNA.id) as connection:
                with pytest.raises(asyncpg.InsufficientPrivilegeError, match="permission denied"):
                    await connection.execute(statement)


@pytest.mark.usefixtures("used")
async def test_who_is_granted_writes_still_writes_own_rows_only(
    login: Login, owner: asyncpg.Connection[Any]
):
    url, tables = await login(USER_ROLE), await tables_of(owner)
    name = urlsplit(url).username
    for table in tables:
        await owner.execute(f"GRANT INSERT, UPDATE, DELETE ON {table} TO {name}")
    for table, whose in tables.items():
        async with opened(url, ANNA.id) as connection:
            changed = await connection.execute(f"UPDATE {table} SET {whose} = {whose}")
            deleted = await connection.execute(f"DELETE FROM {table}")
            everybody = int(await owner.fetchval(f"SELECT count(*) FROM {table}"))
            own = int(
                await owner.fetchval(f"SELECT count(*) FROM {table} WHERE {whose} = $1", ANNA.id)
            )
            assert (changed, deleted) == (f"UPDATE {own}", f"DELETE {own}"), table
            assert everybody == 2 * own, table
    async with opened(url, ANNA.id) as connection:
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="row-level security"):
            await connection.execute("UPDATE usage_logs SET user_id = $1", BERT.id)
    async with opened(url, ANNA.id) as connection:
        await connection.execute(
            "INSERT INTO usage_logs (user_id, action) VALUES ($1, 'event')", ANNA.id
        )
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="row-level security"):
            await connection.execute(
                "INSERT INTO usage_logs (user_id, action) VALUES ($1, 'event')", BERT.id
            )


@pytest.mark.usefixtures("used")
async def test_an_admin_writes_rows_of_all(login: Login):
    async with opened(await login(ADMIN_ROLE)) as connection:
        await connection.execute(
            "INSERT INTO usage_logs (user_id, action) VALUES ($1, 'event')", BERT.id
        )
        assert await connection.execute("UPDATE users SET username = 'x'") == "UPDATE 2"
        assert await connection.execute("DELETE FROM stale_users") == "DELETE 2"


@pytest.mark.usefixtures("used")
async def test_no_setting_makes_an_admin(login: Login):
    url = await login(USER_ROLE)
    async with opened(url, ANNA.id) as connection:
        await connection.execute("SELECT set_config('allotment.role', 'admin', true)")
        await connection.execute("SELECT set_config('allotment.admin', 'on', true)")
        assert await connection.fetchval("SELECT count(*) FROM users") == 1
    async with opened(url, ANNA.id) as connection:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(f"SET LOCAL ROLE {ADMIN_ROLE}")
    async with opened(url, ANNA.id) as connection:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.fetchval("SELECT set_config('role', $1, true)", ADMIN_ROLE)


async def test_a_user_counts_for_oneself_and_an_admin_for_anybody(
    login: Login, owner: asyncpg.Connection[Any], deps: Deps
):
    query = "SELECT increment_feature_usage($1, 'event', 3)"
    user_url, admin_url = await login(USER_ROLE), await login(ADMIN_ROLE)
    counted = []
    for url, user in ((user_url, ANNA.id), (admin_url, None)):
        connection = await asyncpg.connect(url)
        async with connection.transaction():
            if user is not None:
                await connection.execute(
                    "SELECT set_config('allotment.user_id', $1, true)", str(user)
                )
            counted.append(await connection.fetchval(query, ANNA.id))
        await connection.close()
    for user in (ANNA.id, None):
        async with opened(user_url, user) as connection:
            with pytest.raises(asyncpg.InsufficientPrivilegeError, match="for the user in"):
                await connection.fetchval(query, BERT.id)
    async with opened(user_url, ANNA.id) as connection:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.fetchval("SELECT count_usage($1, 'event', 1, NULL)", ANNA.id)

    assert counted == [3, 6]
    assert await owner.fetchval("SELECT increment_feature_usage($1, 'event')", BERT.id) == 1


async def test_a_function_with_its_owners_rights_takes_no_table_of_the_callers(
    login: Login, owner: asyncpg.Connection[Any], deps: Deps
):
    async with opened(await login(USER_ROLE), ANNA.id) as connection:
        await connection.execute("CREATE TEMPORARY TABLE users (id uuid, tier text, timezone text)")
        await connection.execute("SET LOCAL search_path = pg_temp, public")

        assert (
            await connection.fetchval("SELECT public.increment_feature_usage($1, 'event')", ANNA.id)
            == 1
        )

        assert await connection.fetchval("SELECT count(*) FROM pg_temp.users") == 0


@pytest.mark.usefixtures("used")
async def test_a_partition_is_no_way_around(login: Login, owner: asyncpg.Connection[Any]):
    (made,) = await make_partitions(owner, now=datetime.now(UTC), months_ahead=0)
    url = await login(USER_ROLE)
    name = urlsplit(url).username
    assert await owner.fetchval(f"SELECT count(*) FROM {made}") == 4
    for partition in (made, "usage_logs_default"):
        async with opened(url, ANNA.id) as connection:
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.fetch(f"SELECT * FROM {partition}")

    await owner.execute(
        f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {name}"
    )  # somebody means well

    async with opened(url, ANNA.id) as connection:
        assert await connection.fetch(f"SELECT * FROM {made}") == []
        assert await connection.fetchval("SELECT count(*) FROM usage_logs") == 2


async def test_who_is_not_a_member_sees_nothing_at_all(
    login: Login, owner: asyncpg.Connection[Any]
):
    url = await login()
    for table in await tables_of(owner):
        async with opened(url) as connection:
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.fetch(f"SELECT * FROM {table}")


@pytest.mark.usefixtures("used")
async def test_an_identity_ends_with_its_transaction_and_the_pool_has_none_of_it(login: Login):
    url = await login(USER_ROLE, ADMIN_ROLE, inherit=False)
    asked = "SELECT count(*) FROM users"
    async with Database(sqlalchemy_url(url), pool_max=1) as database:
        pids, counts = [], []
        for identity in (
            Identity(ANNA.id),
            Identity(None, admin=True),
            Identity(uuid4()),
            Identity(BERT.id),
        ):
            async with acting_as(database, identity, readonly=True) as connection:
                pids.append(connection.get_server_pid())
                counts.append(await connection.fetchval(asked))
        with pytest.raises(asyncpg.DivisionByZeroError):
            async with acting_as(database, Identity(None, admin=True)) as connection:
                await connection.fetchval("SELECT 1 / 0")
        async with database.connection() as connection:
            left = await connection.fetchrow(
                "SELECT current_setting('role') AS role, allotment_user_id() AS user_id"
            )
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.fetchval(asked)

    assert counts == [1, 2, 0, 1]
    assert len(set(pids)) == 1
    assert left is not None
    assert tuple(left) == ("none", None)


async def test_a_cancelled_request_leaves_no_identity_behind(login: Login, deps: Deps):
    url = await login(USER_ROLE, inherit=False)
    async with Database(sqlalchemy_url(url), pool_max=1) as database:
        begun = asyncio.Event()

        async def ask() -> None:
            async with acting_as(database, Identity(ANNA.id)):
                begun.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(ask())
        await begun.wait()
        task.cancel()
        await asyncio.wait([task])
        async with database.connection() as connection:
            left = await connection.fetchval("SELECT current_setting('role')")

    assert left == "none"


@pytest.mark.usefixtures("used")
async def test_the_service_itself_acts_as_either(deps: Deps):
    async with acting_as(deps.database, Identity(ANNA.id)) as connection:
        assert (
            await connection.fetchval("SELECT increment_feature_usage($1, 'event', 5)", ANNA.id)
            == 85
        )
        assert await connection.fetchval("SELECT count(*) FROM users") == 1
    async with acting_as(deps.database, Identity(None, admin=True)) as connection:
        assert await connection.fetchval("SELECT count(*) FROM users") == 2


async def test_the_roles_are_made_by_two_at_once_and_stay_when_one_goes_back(
    owner: asyncpg.Connection[Any], database_url: str
):
    """Of two databases of a cluster: the second waits for the first, and takes what that has made."""
    names = [f"test_{uuid4().hex[:8]}_{kind}" for kind in ("user", "admin")]
    roles = (
        ROLES.read_text(encoding="utf-8").replace(USER_ROLE, names[0]).replace(ADMIN_ROLE, names[1])
    )
    observer = await asyncpg.connect(database_url)
    async with opened(database_url) as other:
        async with owner.transaction():
            await owner.execute(roles)
            second = asyncio.create_task(other.execute(roles))
            while not await observer.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                pass
        await second
    await observer.execute(f"DROP ROLE {names[0]}, {names[1]}")

    await downgrade(database_url, "base")

    left = await observer.fetch("SELECT rolname FROM pg_roles WHERE rolname LIKE 'allotment\\_%'")
    await observer.close()
    assert {row["rolname"] for row in left} == {USER_ROLE, ADMIN_ROLE}


async def test_an_owner_who_is_no_superuser_migrates_once_it_is_a_member(
    login: Login, owner: asyncpg.Connection[Any], copy_of: Any
):
    async with copy_of("template1") as url:
        as_owner = urlsplit(await login())
        name, database = as_owner.username, urlsplit(url).path
        await owner.execute(f"ALTER DATABASE {database.removeprefix('/')} OWNER TO {name}")
        own_url = as_owner._replace(path=database).geturl()
        with pytest.raises(DBAPIError, match=f"{name} is not a member of role {USER_ROLE}"):
            await upgrade(own_url)

        await owner.execute(f"GRANT {USER_ROLE}, {ADMIN_ROLE} TO {name}")
        await upgrade(own_url)

        async with Database(sqlalchemy_url(own_url), pool_max=1) as service:
            async with service.connection() as connection:
                await connection.execute(
                    "INSERT INTO tiers (version, name, is_default, thresholds) VALUES (1, 'free', true, '{80}')"
                )
                await connection.execute("SELECT increment_feature_usage($1, 'event')", BERT.id)
            async with acting_as(service, Identity(ANNA.id)) as connection:
                await connection.execute("SELECT increment_feature_usage($1, 'event')", ANNA.id)
                assert await connection.fetchval("SELECT count(*) FROM usage_logs") == 1
            async with service.connection() as connection:
                assert await connection.fetchval("SELECT count(*) FROM usage_logs") == 2
