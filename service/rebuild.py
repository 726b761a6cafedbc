"""Makes every rollup anew from the log of usage, while everything else goes on."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from service.database import statement
from service.rollups import Fold, fold_once, folding

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from uuid import UUID

    from service.database import Database
    from service.rollups import Result

__all__ = ["behind_fence", "rebuild"]

_USERS_AT_ONCE = 500  # in one transaction, for which folding waits
_WAIT_S = 0.05  # until whoever folds just now is done


async def rebuild(
    database: Database,
    *,
    user_id: UUID | None = None,
    tell: Callable[[int, int], object] | None = None,
) -> int:
    """Count every user anew, or one; return how many. *tell* is told how many of how many are done.

    Killed at any moment, it goes on by itself: who is not counted anew yet is noted, and the worker's job
    sees to them. Runs whose rows are not to be found are counted by this too, and forgotten.
    """

    async def note(fold: Fold) -> int:
        if user_id is None:
            await fold.connection.execute(statement("service", "fold_note_everybody"))
        else:
            await fold.connection.execute(statement("service", "fold_note_user"), user_id)
        count: int = await fold.connection.fetchval(
            "SELECT count(DISTINCT user_id) FROM stale_rollups"
        )
        return count

    async def reset_platform(fold: Fold) -> None:
        await fold.connection.execute(statement("service", "fold_reset_platform"))

    total = await behind_fence(database, note)
    left = total
    while left:
        if await fold_once(database, users_max=_USERS_AT_ONCE) is None:
            await asyncio.sleep(_WAIT_S)  # the worker's job takes its share
        async with database.connection() as connection:
            left = await connection.fetchval("SELECT count(DISTINCT user_id) FROM stale_rollups")
        if tell is not None:
            tell(max(0, total - left), total)
    if user_id is None:
        await behind_fence(database, reset_platform)
    return total


async def behind_fence(
    database: Database, act: Callable[[Fold], Awaitable[Result]], *, undo: bool = False
) -> Result:
    """As `folding`, for an *act* that gives something, once whoever folds just now is done."""
    while True:
        done: list[Result] = []

        async def keep(fold: Fold, done: list[Result] = done) -> bool:
            done.append(await act(fold))
            return True

        if await folding(database, keep, undo=undo):
            return done[-1]
        await asyncio.sleep(_WAIT_S)
