"""Counts a user's running periods anew, because they begin at other instants than they did.

Without it, a user who moves to another time zone would start every limit over, and use that is logged
in a period that begins earlier than the counted one would not count at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import DateTime, Uuid, bindparam, text
from sqlmodel import col, select

from models import UsageShard
from quota.period import Calendar, window_at
from quota.values import instant_ms, instant_of
from service.database import statement

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from sqlmodel.ext.asyncio.session import AsyncSession

    from models import User

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


async def recount_user(session: AsyncSession, user: User, *, at: datetime) -> None:
    """Set the user's counters to what `usage_logs` has in the periods of *at*, in this transaction.

    The caller holds the shard (`hold_shard_of`), so no worker applies meanwhile; what is applied
    afterwards is counted in the new calendar.
    """
    calendar = Calendar(user.timezone, instant_ms(user.anchor), user.cycle_months)
    starts = {
        f"{per}_start": instant_of(window_at(per, instant_ms(at), calendar).start_ms)
        for per in PERIODS
    }
    connection = await session.connection()
    recount = text(statement("service", "recount_user")).bindparams(
        bindparam("user_id", type_=Uuid()),
        *(bindparam(name, type_=DateTime(timezone=True)) for name in starts),
    )
    await connection.execute(recount, {"user_id": user.id, **starts})
