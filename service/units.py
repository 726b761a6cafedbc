"""Takes units out of the running periods that counted them: a hold that ended, a record refunded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quota.period import window_at
from quota.values import instant_of
from service.database import statement

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime
    from uuid import UUID

    import asyncpg

    from quota.period import Calendar

__all__ = ["PERIODS", "counted_starts", "take_back_units"]

PERIODS = ("hour", "day", "week", "month", "year", "cycle")


def counted_starts(
    calendar: Calendar, *, occurred_ms: int, arrived_ms: int, grace_ms: int
) -> list[datetime]:
    """The starts of the periods that counted a record, in the order of `PERIODS` (DESIGN 5, late records).

    It counts in the period in which it occurred, if that one is running when it arrives, or ended
    last and not longer than the grace ago; else in the one that is running then.
    """
    starts: list[datetime] = []
    for per in PERIODS:
        then, running = (window_at(per, ms, calendar) for ms in (occurred_ms, arrived_ms))
        in_grace = then.end_ms == running.start_ms and arrived_ms < running.start_ms + grace_ms
        starts.append(instant_of(then.start_ms if in_grace else running.start_ms))
    return starts


async def take_back_units(
    connection: asyncpg.Connection[Any],
    user_id: UUID,
    feature: str,
    units: int,
    *,
    starts: list[datetime],
    windows: Iterable[tuple[int, int]] = (),
    opened_ms: int | None = None,
) -> None:
    """Count *units* no more in those of the periods from *starts*, and of *windows*, that still run.

    *windows* are seconds and end in ms; where they are not known, *opened_ms*, the instant of the
    use, tells in which of the windows opened last it lies.
    """
    await connection.execute(
        statement("service", "take_back_units"), user_id, feature, units, *starts
    )
    known = list(windows)
    if known or opened_ms is not None:
        await connection.execute(
            statement("service", "take_back_windows"),
            user_id,
            feature,
            units,
            [seconds for seconds, _ in known],
            [instant_of(end_ms) for _, end_ms in known],
            None if opened_ms is None else instant_of(opened_ms),
        )
