"""What a user ever did, as of an instant: the row of `user_lifetime_stats`, and what depends on the day."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from service.database import statement
from service.subscribed import subscribed_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

    import asyncpg

__all__ = ["MILESTONES", "lifetime_of"]

# How much of a total is worth telling (seed 002: "show users their progress/milestones").
MILESTONES: Mapping[str, tuple[int, ...]] = {
    "days_active": (1, 7, 30, 100, 365, 1_000),
    "longest_streak": (3, 7, 30, 100, 365),
    "total_conversations": (1, 10, 100, 1_000, 10_000),
    "total_seconds": (3_600, 36_000, 360_000, 3_600_000),
}


async def lifetime_of(
    connection: asyncpg.Connection[Any], user_id: UUID, *, at: datetime
) -> dict[str, Any] | None:
    """The columns of the user's row, with `milestones`, as of *at*; None: nothing was folded of the user.

    A streak is over when the user did nothing yesterday either, in the user's own time zone. Months subscribed,
    revenue and highest tier are counted now; the rest is as new as the last fold (`service.rollups.rollup_lag`).
    """
    row = await connection.fetchrow(statement("service", "lifetime"), user_id)
    if row is None:
        return None
    found = dict(row)
    today = at.astimezone(ZoneInfo(found.pop("timezone") or "UTC")).date()
    ends_on, streak = found.pop("streak_ends_on"), found.pop("last_streak")
    is_over = ends_on is None or ends_on < today - timedelta(days=1)
    found["current_streak"] = 0 if is_over else streak
    subscribed = (await subscribed_of(connection, [user_id], at=at)).get(user_id)
    if subscribed is not None:
        found |= asdict(subscribed)
    found["milestones"] = {
        name: [mark for mark in marks if mark <= found[name]] for name, marks in MILESTONES.items()
    }
    return found
