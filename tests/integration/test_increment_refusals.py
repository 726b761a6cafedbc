"""What `increment_feature_usage` does not take, and for how long it keeps others waiting."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from quota.values import AMOUNT_MAX, parse_user_id
from service.staleness import drop_stale_users
from tests.integration.stacks import Real
from worker.deps import Deps

USER = parse_user_id("user-1").id
ANY = {"limits": {"*": {"max": "unlimited", "per": "lifetime"}}}
COUNT = "SELECT increment_feature_usage($1, 'event', $2)"


@pytest.fixture
async def real(deps: Deps, apply_tiers: Any) -> Real:
    await apply_tiers(deps, {"default_tier": "free", "tiers": {"free": ANY}})
    return Real(deps)


@pytest.fixture
async def connection(real: Real) -> Any:
    opened = await asyncpg.connect(real.deps.settings.asyncpg_dsn)
    yield opened
    await opened.close()


async def test_a_total_that_no_decision_could_count_with_is_refused(real: Real, connection: Any):
    deps = real.deps
    await connection.execute(COUNT, USER, AMOUNT_MAX - 5)

    with pytest.raises(
        asyncpg.NumericValueOutOfRangeError,
        match=f"^amount: 6 with the {AMOUNT_MAX - 5} .* more than {AMOUNT_MAX}$",
    ):
        await connection.execute(COUNT, USER, 6)

    assert await connection.fetchval("SELECT sum(amount) FROM usage_logs") == AMOUNT_MAX - 5
    assert await connection.fetchval(COUNT, USER, 4) == AMOUNT_MAX - 1
    await drop_stale_users(deps.database, deps.redis, deps.keys)
    assert (await deps.quota.consume("user-1", "event", 1)).allowed


async def test_what_only_the_lifetime_has_counts_for_the_bound_too(connection: Any):
    """As an open hold does, which is no use yet."""
    await connection.execute(COUNT, USER, 1)
    await connection.execute("UPDATE usage_counters SET lifetime_used = $1", AMOUNT_MAX)

    with pytest.raises(asyncpg.NumericValueOutOfRangeError, match="amount: 1 with the 9007"):
        await connection.execute(COUNT, USER, 1)


async def test_a_database_may_say_that_no_user_is_made(real: Real, connection: Any):
    await connection.execute(COUNT, USER, 1)
    name = await connection.fetchval("SELECT current_database()")
    await connection.execute(f"ALTER DATABASE {name} SET allotment.auto_provision = off")
    later = await asyncpg.connect(real.deps.settings.asyncpg_dsn)
    stranger = uuid4()

    with pytest.raises(
        asyncpg.NoDataFoundError, match=f"^unknown_user: there is no user {stranger}"
    ):
        await later.execute(COUNT, stranger, 1)

    assert await later.fetchval(COUNT, USER, 1) == 2
    await later.close()
    assert await connection.fetchval("SELECT count(*) FROM users") == 1


async def test_a_session_that_forgets_its_transaction_holds_nobody_up_for_long(
    real: Real, connection: Any
):
    deps = real.deps
    ended: list[Any] = []
    connection.add_termination_listener(ended.append)
    await connection.execute("BEGIN")
    await connection.execute("SET LOCAL idle_in_transaction_session_timeout = '200ms'")
    await connection.execute(COUNT, USER, 1)
    await deps.quota.record("user-1", "event", 2)

    await real.apply()  # waits for the row until PostgreSQL has ended that session

    async with deps.database.connection() as other:
        assert await other.fetchval("SELECT usage_count FROM feature_usage") == 2
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
        await connection.execute("COMMIT")


async def test_a_transaction_that_has_counted_may_be_idle_for_ten_seconds(connection: Any):
    idle = "SELECT current_setting('idle_in_transaction_session_timeout')"
    found = []
    for before in ("0", "1h", "3s"):
        async with connection.transaction():
            await connection.execute(f"SET LOCAL idle_in_transaction_session_timeout = '{before}'")
            await connection.execute(COUNT, uuid4(), 1)
            found.append(await connection.fetchval(idle))

    assert found == ["10s", "10s", "3s"]
    assert await connection.fetchval(idle) == "0"
