from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING

import asyncpg
import pytest

from service.partitions import make_partitions

NOW = datetime(2026, 11, 15, 12, tzinfo=UTC)
AHEAD = [
    "usage_logs_2026_11",
    "usage_logs_2026_12",
    "usage_logs_2027_01",
    "usage_logs_2027_02",
]
SECONDS_MAX = 60

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]  # only the stubs know the parameter


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator[Connection]:
    opened = await asyncpg.connect(database_url)
    yield opened
    await opened.close()


@pytest.fixture
async def other(database_url: str) -> AsyncIterator[Connection]:
    opened = await asyncpg.connect(database_url)
    yield opened
    await opened.close()


async def log_usage(connection: Connection, *instants: datetime) -> None:
    await connection.execute(
        """
        INSERT INTO usage_logs (user_id, action, created_at, metadata, credits_consumed)
        SELECT gen_random_uuid(), 'image_generation', at, '{"n": 1}', 2.5
        FROM unnest($1::timestamptz[]) AS at
        """,
        instants,
    )


async def logged(connection: Connection) -> list[tuple[object, ...]]:
    return [tuple(row) for row in await connection.fetch("SELECT * FROM usage_logs ORDER BY id")]


async def counts(connection: Connection) -> dict[str, int]:
    rows = await connection.fetch(
        "SELECT tableoid::regclass::text AS name, count(*) FROM usage_logs GROUP BY 1"
    )
    return {row["name"]: row["count"] for row in rows}


def days_of(year: int, month: int) -> list[datetime]:
    first = datetime(year, month, 1, tzinfo=UTC)
    return [first + timedelta(days=day) for day in range(28)]


async def test_this_month_and_the_next_three_are_made(connection):
    assert await make_partitions(connection, now=NOW) == AHEAD


async def test_what_is_there_is_not_made_again(connection):
    await make_partitions(connection, now=NOW)

    assert await make_partitions(connection, now=NOW) == []
    assert await make_partitions(connection, now=NOW + timedelta(days=30)) == ["usage_logs_2027_03"]


async def test_the_month_is_the_one_of_utc(connection):
    new_year_in_kiritimati = datetime(2027, 1, 1, tzinfo=timezone(timedelta(hours=14)))

    made = await make_partitions(connection, now=new_year_in_kiritimati, months_ahead=0)

    assert made == ["usage_logs_2026_12"]


async def test_a_row_goes_to_its_month_and_without_one_to_the_default(connection):
    await make_partitions(connection, now=NOW)
    december = datetime(2026, 12, 1, tzinfo=UTC)
    moment = timedelta(microseconds=1)

    await log_usage(connection, december - moment, december, datetime(2027, 3, 1, tzinfo=UTC))

    assert await counts(connection) == {
        "usage_logs_2026_11": 1,
        "usage_logs_2026_12": 1,
        "usage_logs_default": 1,
    }


async def test_rows_that_were_there_before_their_month_are_moved_and_none_is_lost(connection):
    await log_usage(connection, *days_of(2026, 10), *days_of(2026, 11), *days_of(2026, 12))
    before = await logged(connection)

    await make_partitions(connection, now=NOW)

    assert await logged(connection) == before
    assert await counts(connection) == {
        "usage_logs_default": 28,
        "usage_logs_2026_11": 28,
        "usage_logs_2026_12": 28,
    }


async def test_a_partition_has_each_index_of_the_table_once(connection):
    await log_usage(connection, *days_of(2026, 11))

    await make_partitions(connection, now=NOW)

    per_partition = dict(
        tuple(row)
        for row in await connection.fetch(
            """
            SELECT i.indrelid::regclass::text, count(*)
            FROM pg_index i JOIN pg_inherits h ON h.inhrelid = i.indexrelid
            GROUP BY 1
            """
        )
    )
    indexes_all = await connection.fetchval(
        "SELECT count(*) FROM pg_indexes WHERE tablename LIKE 'usage\\_logs\\_%'"
    )
    assert per_partition == dict.fromkeys([*AHEAD, "usage_logs_default"], 7)
    assert indexes_all == 7 * 5


async def test_two_at_once_make_each_partition_once(connection, other):
    await log_usage(connection, *days_of(2026, 11), *days_of(2027, 2))
    before = await logged(connection)

    made = await asyncio.gather(
        make_partitions(connection, now=NOW), make_partitions(other, now=NOW)
    )

    assert sorted(made[0] + made[1]) == AHEAD
    assert await logged(connection) == before


async def test_rows_that_come_while_rows_are_moved_are_all_there(connection, other):
    await log_usage(connection, *(days_of(2026, 11) * 100))
    written = 2800
    over = asyncio.Event()

    async def write() -> None:
        nonlocal written
        while not over.is_set():
            await log_usage(other, *days_of(2026, 11), *days_of(2026, 12))
            written += 56

    async with asyncio.timeout(SECONDS_MAX), asyncio.TaskGroup() as group:
        group.create_task(write())
        made = await make_partitions(connection, now=NOW)
        over.set()

    assert made == AHEAD
    assert sum((await counts(connection)).values()) == written
    assert (await counts(connection)).get("usage_logs_default", 0) == 0


async def test_whoever_has_read_and_now_writes_is_let_through_first(
    connection, other, database_url
):
    await log_usage(connection, *days_of(2026, 11))
    observer = await asyncpg.connect(database_url)
    async with asyncio.timeout(SECONDS_MAX):
        async with other.transaction():
            await other.fetch("SELECT count(*) FROM usage_logs")
            made = asyncio.create_task(make_partitions(connection, now=NOW, months_ahead=0))
            while not await observer.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                pass
            await log_usage(other, *days_of(2026, 11))

        assert await made == ["usage_logs_2026_11"]
    await observer.close()

    assert await counts(connection) == {"usage_logs_2026_11": 56}


async def test_a_month_whose_rows_are_being_read_is_left_for_the_next_time(connection, other):
    await log_usage(connection, *days_of(2026, 11))
    before = await logged(connection)
    async with other.transaction():
        await other.fetch("SELECT count(*) FROM usage_logs")

        assert await make_partitions(connection, now=NOW, months_ahead=0) == []
        assert await logged(connection) == before

    assert await make_partitions(connection, now=NOW, months_ahead=0) == ["usage_logs_2026_11"]
    assert await logged(connection) == before


async def test_a_move_that_fails_leaves_every_row_where_it_was(connection):
    await log_usage(connection, *days_of(2026, 11))
    before = await logged(connection)
    await connection.execute("CREATE TABLE usage_logs_2026_11 ()")  # somebody's, and not attached

    with pytest.raises(asyncpg.DuplicateTableError):
        await make_partitions(connection, now=NOW)

    assert await logged(connection) == before
    assert await counts(connection) == {"usage_logs_default": 28}
