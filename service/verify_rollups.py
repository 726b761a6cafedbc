"""What users did by day, month and lifetime, counted anew from the log of usage beside what is stored.

Both are taken in one transaction behind the fence of the fold: users are counted anew, what changed by it is what
was wrong, and unless it is to be mended, all of it is undone.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from uuid import UUID

from service.database import statement
from service.figures import Difference
from service.rebuild import behind_fence, rebuild
from service.rollups import Fold, RunsIncompleteError, fold_once

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from service.database import Database
    from service.verify import Report

__all__ = ["EVERYBODY", "verify_rollups"]

_USERS_AT_ONCE = 200  # in one transaction, for which folding waits
EVERYBODY = "everybody"  # in the place of a user
_NOBODY = UUID(int=0)

Rows = dict[tuple[str, UUID, str | None], dict[str, Any]]


async def verify_rollups(
    database: Database,
    report: Report,
    *,
    fix: bool,
    user_id: UUID | None = None,
    tell: Callable[[int, int], object] | None = None,
) -> None:
    """Add to *report* what is wrong with the rollups of every user, or of one, and with those of everybody."""
    try:
        await fold_once(database, users_max=0)
    except RunsIncompleteError as error:
        lost = Difference(_NOBODY, "usage_runs", None, error.found, error.noted)
        mended = fix and user_id is None  # of one user, it would be about all the others
        report.add(EVERYBODY, [lost], mended=mended)
        if not mended:
            return  # what the others should be depends on it
        await rebuild(database)
    done, after = 0, None
    only = None if user_id is None else [user_id]
    async with database.connection() as connection:
        total: int = 1 if only else await connection.fetchval("SELECT count(*) FROM users")
    while True:
        async with database.connection() as connection:
            users = await connection.fetch(
                statement("service", "verify_users"), after, only, _USERS_AT_ONCE
            )
        if users:
            names = {row["id"]: row["name"] for row in users}
            for one in await _compare(database, list(names), fix=fix):
                report.add(names[one.user_id], [one], mended=fix)
            after = users[-1]["id"]
        done += len(users)
        if tell is not None:
            tell(done, max(done, total))
        if len(users) < _USERS_AT_ONCE:
            break
    if only is None:
        for one in await _compare_platform(database, fix=fix):
            report.add(EVERYBODY, [one], mended=fix)


async def _compare(database: Database, users: Sequence[UUID], *, fix: bool) -> list[Difference]:
    async def act(fold: Fold) -> list[Difference] | None:
        _, more = await fold.runs()
        if more:
            return None  # too much for one transaction
        known = await fold.connection.fetch(statement("service", "verify_stale_rollups"), users)
        # Those that wait to be counted anew are not wrong: they are not done.
        sound = sorted({*users} - {row["user_id"] for row in known})
        await fold.end_streaks(again=True)
        before = await _rows(fold, sound)
        if sound:
            await fold.count_anew(sound)
        return list(_differences(before, await _rows(fold, sound)))

    while (found := await behind_fence(database, act, undo=not fix)) is None:
        await fold_once(database, users_max=0)
    return found


async def _compare_platform(database: Database, *, fix: bool) -> list[Difference]:
    async def act(fold: Fold) -> list[Difference]:
        rows = await fold.connection.fetch(statement("service", "verify_platform"))
        if rows and fix:
            await fold.connection.execute(statement("service", "fold_reset_platform"))
        return [
            Difference(_NOBODY, row["figure"], row["place"], row["stored"], row["expected"])
            for row in rows
        ]

    return await behind_fence(database, act)


async def _rows(fold: Fold, users: Sequence[UUID]) -> Rows:
    rows = await fold.connection.fetch(statement("service", "verify_rollup_rows"), users)
    return {
        (row["figure"], row["user_id"], row["place"]): json.loads(row["columns"], parse_float=str)
        for row in rows
    }


def _differences(before: Rows, after: Rows) -> Iterator[Difference]:
    for key in sorted({*before, *after}, key=str):
        table, user_id, place = key
        stored, expected = before.get(key), after.get(key)
        if stored is None or expected is None:
            row = stored or expected or {}
            # A row of nothing says what none says; each user has reached the tier that it was made on.
            if any(_says(row[name]) for name in row if name != "highest_tier_reached"):
                yield Difference(user_id, table, place, _text(stored), _text(expected))
            continue
        for column, value in expected.items():
            if stored[column] != value:
                yield Difference(user_id, f"{table}.{column}", place, stored[column], value)


def _text(row: dict[str, Any] | None) -> str | None:
    """The columns of a row that say something; credits are text, because a float is not exact."""
    return (
        None if row is None else json.dumps({name: row[name] for name in row if _says(row[name])})
    )


def _says(value: Any) -> bool:
    return value not in (None, 0, "0.000000", "0.00")
