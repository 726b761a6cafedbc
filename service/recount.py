"""Counts a user's running periods anew, because they begin at other instants than they did.

Without it, a user who moves to another time zone would start every limit over, and use that is logged
in a period that begins earlier than the counted one would not count at all.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sqlmodel import col, select

from models import UsageShard
from quota.period import Calendar, window_at
from quota.values import instant_ms, instant_of
from service.database import driver_of, statement
from service.refunds import LATE_GRACE_MS

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    import asyncpg
    from sqlmodel.ext.asyncio.session import AsyncSession

    from models import User
    from quota.period import Window

__all__ = ["PERIODS", "hold_shard_of", "recount_user"]

PERIODS = ("hour", "day", "week", "month", "year", "cycle")


async def hold_shard_of(session: AsyncSession, user_id: UUID) -> None:
    """Keep workers from applying the user's shard until this transaction ends.

    Before any lock on the user: a worker takes the shard first, and its users then.
    """
    shards = len((await session.exec(select(UsageShard.shard))).all())
    if shards:
        shard = select(UsageShard).where(col(UsageShard.shard) == user_id.int % shards)
        await session.exec(shard.with_for_update())


async def recount_user(
    session: AsyncSession, user: User, *, at: datetime, grace_ms: int = LATE_GRACE_MS
) -> None:
    """Set the user's counters to what was used or is held in the periods of *at*, in this transaction.

    What came late counts where it would have counted in these periods, and what was refunded nowhere.
    The caller holds the shard (`hold_shard_of`), so no worker applies meanwhile; what is applied
    afterwards is counted in the new calendar.
    """
    calendar = Calendar(user.timezone, instant_ms(user.anchor), user.cycle_months)
    running = {per: window_at(per, instant_ms(at), calendar) for per in PERIODS}
    connection = await driver_of(session)
    counted = await _logged(connection, user.id, running, calendar, grace_ms)
    for row in await connection.fetch(statement("service", "load_holds"), [user.id]):
        reserved_ms = instant_ms(row["reserved_at"])
        for per, window in running.items():
            if window_at(per, reserved_ms, calendar) == window:
                counted[row["feature"]][per] += row["amount"]
    units = [[of[per] for of in counted.values()] for per in PERIODS]
    starts = [instant_of(window.start_ms) for window in running.values()]
    await connection.execute(
        statement("service", "recount_user"), user.id, *starts, list(counted), *units
    )


async def _logged(
    connection: asyncpg.Connection[Any],
    user_id: UUID,
    running: dict[str, Window],
    calendar: Calendar,
    grace_ms: int,
) -> defaultdict[str, Counter[str]]:
    """Units by feature and period that `usage_logs` has in the windows that run."""
    asked = []
    for per, window in running.items():
        assert window.end_ms is not None
        before = window_at(per, window.start_ms - 1, calendar)
        bounds = (before.start_ms, window.start_ms, window.end_ms, window.end_ms)
        asked.append((user_id, per, *map(instant_of, bounds)))
    columns = [list(column) for column in zip(*asked, strict=True)]
    counted: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for row in await connection.fetch(
        statement("service", "count_windows"), *columns, timedelta(milliseconds=grace_ms)
    ):
        counted[row["feature"]][row["per"]] = row["units"]
    return counted
