"""What a user's stretches on tiers come to: the subscription history of seed 002.

Time alone adds months to it, so that it is counted when it is asked for. For those who read `user_lifetime_stats`
themselves, a job counts who had a change since it looked last, and everybody once a day.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import asyncpg

from service.database import statement

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from datetime import datetime
    from decimal import Decimal
    from uuid import UUID

    from service.database import Database

__all__ = ["Subscribed", "store_again", "store_subscribed", "subscribed_of"]

_USERS_MAX = 1_000  # in one transaction, for which a fold waits
_COUNTED_EVERY = timedelta(days=1)  # months grow by themselves, and tiers change places
# A fold is a transaction of seconds; after so long, the next time will do.
_LOCK = "SET LOCAL lock_timeout = '4s'; LOCK TABLE rollup_state IN EXCLUSIVE MODE"


@dataclass(frozen=True, slots=True)
class Subscribed:
    """Whole months on tiers other than the default, what they brought in, and the highest of them."""

    months_subscribed: int
    total_revenue: Decimal
    highest_tier_reached: str

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {
            "months_subscribed": self.months_subscribed,
            "total_revenue": f"{self.total_revenue:.2f}",
            "highest_tier_reached": self.highest_tier_reached,
        }


async def subscribed_of(
    connection: asyncpg.Connection[Any], user_ids: Collection[UUID], *, at: datetime | None
) -> dict[UUID, Subscribed]:
    """The history of each of these users up to *at*; of one that does not exist there is none.

    None: up to when `user_lifetime_stats` counted the user last.
    """
    rows = await connection.fetch(statement("service", "subscribed"), list(user_ids), at)
    return {
        row["user_id"]: Subscribed(
            row["months_subscribed"], row["total_revenue"], row["highest_tier_reached"]
        )
        for row in rows
    }


async def store_again(connection: asyncpg.Connection[Any], user_ids: Collection[UUID]) -> None:
    """Make of `user_lifetime_stats` what it should be since *user_ids* were counted last, behind the fence.

    Who had a change since then, or other tiers, is left to the job that counts them.
    """
    rows = await connection.fetch(statement("service", "counted_users"), list(user_ids))
    users = [row["user_id"] for row in rows]
    await _store(connection, await subscribed_of(connection, users, at=None))


async def store_subscribed(
    database: Database, *, at: datetime | None = None, seconds_max: float
) -> int:
    """Bring `user_lifetime_stats` up to date at *at* (None: PostgreSQL's now); return how many stretches were counted.

    The fence is that of the folds, which write the same rows. While a fold goes on too long, nothing is done.
    """
    until = time.monotonic() + seconds_max
    counted = 0
    while True:
        try:
            found = await _store_some(database, at)
        except asyncpg.LockNotAvailableError:
            return counted
        counted += found
        if found < _USERS_MAX or time.monotonic() >= until:
            return counted


async def _store_some(database: Database, at: datetime | None) -> int:
    async with database.connection() as connection, connection.transaction():
        await connection.execute(_LOCK)
        now = at or await connection.fetchval("SELECT clock_timestamp()")
        rows = await connection.fetch(
            statement("service", "uncounted_subscriptions"), now - _COUNTED_EVERY, _USERS_MAX
        )
        found = await subscribed_of(connection, {row["user_id"] for row in rows}, at=now)
        await _store(connection, found)
        users, ids = [row["user_id"] for row in rows], [row["id"] for row in rows]
        await connection.execute(statement("service", "set_counted"), users, ids, now)
    return len(rows)


async def _store(connection: asyncpg.Connection[Any], found: Mapping[UUID, Subscribed]) -> None:
    await connection.execute(
        statement("service", "store_subscribed"),
        [*found],
        [one.months_subscribed for one in found.values()],
        [one.total_revenue for one in found.values()],
        [one.highest_tier_reached for one in found.values()],
    )
