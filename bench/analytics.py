"""The named queries over ten million logged records of a hundred thousand users."""

from __future__ import annotations

import random
import time
from datetime import UTC, datetime, timedelta
from statistics import median
from typing import TYPE_CHECKING

from bench.load import TIERS
from bench.stage import open_directory
from quota.rules import Rules
from service import analytics
from service.database import Database
from service.embedded import EmbeddedServers
from service.identity import Identity
from service.migrations import upgrade
from service.partitions import make_partitions
from service.rollups import fold_all
from service.settings import load_settings
from service.tiers import apply_rules

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from uuid import UUID

    from bench.report import Numbers

__all__ = ["analytics_queries"]

_DAYS = 60  # that the records are spread over, evenly
_CHUNK = 250_000  # records in one transaction, as a worker's run
_FOLD_SECONDS_MAX = 3_600
_CALLS = 60  # of each query
_USERS = """
INSERT INTO users (id, external_id, username, tier)
SELECT md5('user ' || n)::uuid, 'user-' || n, 'user ' || n, $2 FROM generate_series(1, $1::int) n
"""
# In the order of time, as a worker writes them; users, features, formats and prices are spread by the number.
_LOGS = """
INSERT INTO usage_logs (id, user_id, action, amount, credits_consumed, created_at, format, quality)
SELECT gen_random_uuid(), md5('user ' || (1 + hashint8(n) & 2147483647) % $4::int)::uuid,
       (ARRAY['tokens', 'images', 'conversations', 'seconds'])[1 + n % 4], 1 + n % 7, (n % 11) / 4.0,
       $3::timestamptz + n * $5::interval,
       CASE WHEN n % 4 = 1 THEN (ARRAY['video', 'image'])[1 + n / 4 % 2] END,
       CASE WHEN n % 4 = 1 THEN (ARRAY['high', 'standard'])[1 + n / 8 % 2] END
FROM generate_series($1::bigint, $2::bigint) n
"""
_RUN = """
INSERT INTO usage_runs (records, first_at, last_at, users, ids, instants)
VALUES ($1, $2, $3, '{}', '{}', '{}')
"""


async def analytics_queries(
    *, records: int, users: int, tell: Callable[[str], object] = lambda _: None
) -> Numbers:
    """The median of each query in milliseconds, and how many records a second were folded."""
    with open_directory() as directory:
        async with EmbeddedServers(directory / "servers") as servers:
            settings = load_settings(log_level="warning").served_by(
                database_url=servers.database_url, redis_url=servers.redis_url
            )
            await upgrade(settings.sqlalchemy_url)
            async with Database(settings.sqlalchemy_url, pool_max=2) as database:
                await _fill(database, records=records, users=users, tell=tell)
                tell("folding")
                started = time.perf_counter()
                folded = await fold_all(database, seconds_max=_FOLD_SECONDS_MAX)
                seconds = time.perf_counter() - started
                assert folded is not None
                assert folded.records == records
                async with database.connection() as connection:
                    await connection.execute("VACUUM ANALYZE")
                tell("asking")
                numbers = await _ask(database)
    return {"folded_per_second": records / seconds, **numbers}


async def _fill(
    database: Database, *, records: int, users: int, tell: Callable[[str], object]
) -> None:
    rules = await apply_rules(database, Rules.from_document(TIERS))
    since = datetime.now(UTC) - timedelta(days=_DAYS)
    step = timedelta(days=_DAYS) / (records + 1)
    async with database.connection() as connection:
        await make_partitions(connection, now=since)
        await connection.execute(_USERS, users, rules.default_tier)
        await connection.execute("DELETE FROM stale_rollups")
        for first in range(1, records + 1, _CHUNK):
            tell(f"logging, {first - 1:,} of {records:,} records")
            last = min(records, first + _CHUNK - 1)
            async with connection.transaction():
                await connection.execute(_LOGS, first, last, since, users, step)
                times = (since + first * step - step, since + last * step + step)
                await connection.execute(_RUN, last - first + 1, *times)


async def _ask(database: Database) -> Numbers:
    async with database.connection() as connection:
        rows = await connection.fetch("SELECT id FROM users ORDER BY id")
    draw = random.Random(2003)
    some: list[UUID] = [row["id"] for row in draw.sample(rows, min(_CALLS, len(rows)))]
    admin = Identity(None, admin=True)
    of_user = {
        "history": analytics.history,
        "credit_summary": analytics.credit_summary,
        "by_action": analytics.by_action,
        "by_format_and_quality": analytics.by_format_and_quality,
        "daily": analytics.daily,
    }
    numbers: Numbers = {}
    for name, ask in of_user.items():
        calls = [lambda user=user, ask=ask: ask(database, Identity(user), user) for user in some]
        numbers[f"query_{name}_ms"] = await _median_ms(calls)
    of_all: dict[str, Callable[[], Awaitable[object]]] = {
        "platform": lambda: analytics.platform(database, admin, days=30),
        "ranking": lambda: analytics.ranking(database, admin),
        "weekly_trends": lambda: analytics.weekly_trends(database, admin),
    }
    for name, call in of_all.items():
        numbers[f"query_{name}_ms"] = await _median_ms([call] * _CALLS)
    return numbers


async def _median_ms(calls: Sequence[Callable[[], Awaitable[object]]]) -> float:
    taken = []
    for call in calls:
        started = time.perf_counter()
        found = await call()
        taken.append(1000 * (time.perf_counter() - started))
        assert found, "a query that finds nothing measures nothing"
    return median(taken)
