"""Makes every rollup anew from the log of usage, while everything else goes on."""

from __future__ import annotations

import asyncio
from functools import partial
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
    """Count every user anew, or one alone; return how many. *tell* is told how many of how many are done.

    Killed at any moment, it goes on by itself: who is not counted anew yet is noted, and the worker's job
    sees to them. Runs whose rows are not to be found are counted by this too, and forgotten, but not for one user.

    Raises:
        RunsIncompleteError: there are such runs, and only one user is to be counted.
    """
    if user_id is not None:
        while not await behind_fence(database, partial(_count_one, user_id)):
            pass
        return 1
    await behind_fence(database, _note_everybody)
    total: int | None = None
    while True:
        async with database.connection() as connection:
            left = await connection.fetchrow(statement("service", "rebuild_left"))
        assert left is not None, "the migration made its row"
        total = int(left["users"]) if total is None else total
        if tell is not None:
            tell(max(0, total - left["users"]), total)
        if not left["users"] and not left["platform_is_stale"]:
            return total
        if await fold_once(database, users_max=_USERS_AT_ONCE) is None:
            await asyncio.sleep(_WAIT_S)  # the worker's job takes its share


async def _note_everybody(fold: Fold) -> None:
    await fold.connection.execute(statement("service", "fold_note_everybody"))


async def _count_one(user_id: UUID, fold: Fold) -> bool:
    """False: first there are more runs to fold, in other transactions."""
    _, more = await fold.runs()
    if not more:
        await fold.count_anew([user_id])
        await fold.connection.execute(statement("service", "fold_forget_user"), user_id)
    return not more


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
