"""What became of the rows of a legacy `feature_usage` or `user_feature_usage` that 0008 brought over (seed 004).

The legacy relations stay in the schema `allotment_legacy`, for the way back, and can be compared for as long.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from service.database import statement

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

    import asyncpg

__all__ = [
    "Compared",
    "Legacy",
    "Reject",
    "Source",
    "Unequal",
    "compare_legacy",
    "legacy_brought_over",
]

_LISTED_MAX = 1_000
_COMPARE_S_MAX = 3_600.0  # it reads every legacy row again


@dataclass(frozen=True, slots=True)
class Source:
    """Rows of a legacy relation: *brought* over or *rejected*; and the *units* of the first."""

    name: str
    rows: int
    brought: int
    rejected: int
    units: int


@dataclass(frozen=True, slots=True)
class Reject:
    """So many rows of a legacy relation that are kept aside, in quarantine, for a reason."""

    source: str
    reason: str
    rows: int


@dataclass(frozen=True, slots=True)
class Legacy:
    """All that was brought over, and what was not; *users_made* were not known before."""

    sources: Sequence[Source]
    rejects: Sequence[Reject]
    users_made: int


@dataclass(frozen=True, slots=True)
class Unequal:
    """A user and feature: units that legacy rows have, that were brought over, and that are counted; None: no row."""

    user_id: UUID
    feature: str
    legacy: int | None
    brought: int | None
    counted: int | None
    lifetime: int | None


@dataclass(frozen=True, slots=True)
class Compared:
    """The sources as they were read and as they are now, and where the sums differ: *total*, some of them listed.

    *deleted*: rows that went from a legacy table since, with the rows that they referred to, by source.
    """

    read: Sequence[Source]
    now: Sequence[Source]
    unequal: Sequence[Unequal]
    total: int
    deleted: Mapping[str, int]
    users_made: int

    @property
    def equal(self) -> bool:
        """Whether every row and every unit is there, but for rows that were deleted since."""
        return not self.total and all(
            read == now or self._is_less(read, now)
            for read, now in zip(self.read, self.now, strict=True)
        )

    def _is_less(self, read: Source, now: Source) -> bool:
        """Whether *now* lacks no more rows than were deleted; of units, `unequal` tells."""
        deleted = self.deleted.get(read.name, 0)
        return 0 <= read.rows - now.rows <= deleted and 0 <= read.rejected - now.rejected <= deleted


async def legacy_brought_over(connection: asyncpg.Connection[Any]) -> Legacy | None:
    """What was brought over; None if there was nothing, or its schema was dropped."""
    if not await _is_there(connection):
        return None
    rejects = await connection.fetch(statement("service", "legacy_rejects"))
    return Legacy(
        await _sources(connection),
        [Reject(**dict(row)) for row in rejects],
        await _made(connection),
    )


async def compare_legacy(connection: asyncpg.Connection[Any]) -> Compared | None:
    """Read every legacy row again, and compare with what was brought over; None if there is nothing to compare."""
    if not await _is_there(connection):
        return None
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        read = await _sources(connection)
        rows = await connection.fetch(statement("service", "legacy_rows"), timeout=_COMPARE_S_MAX)
        unequal = await connection.fetch(
            statement("service", "legacy_compare"), _LISTED_MAX, timeout=_COMPARE_S_MAX
        )
        deleted = await connection.fetch(statement("service", "legacy_deleted"))
        made = await _made(connection)
    found = {row["source"]: row for row in rows}
    now = [_source_now(one.name, found.get(one.name)) for one in read]
    return Compared(
        read,
        now,
        [_unequal(row) for row in unequal],
        unequal[0]["total"] if unequal else 0,
        {row["source"]: row["rows"] for row in deleted},
        made,
    )


async def _is_there(connection: asyncpg.Connection[Any]) -> bool:
    relation = await connection.fetchval("SELECT to_regclass('allotment_legacy.sources')")
    return relation is not None


async def _made(connection: asyncpg.Connection[Any]) -> int:
    made: int = await connection.fetchval("SELECT made FROM allotment_legacy.progress")
    return made


async def _sources(connection: asyncpg.Connection[Any]) -> list[Source]:
    rows = await connection.fetch(statement("service", "legacy_sources"))
    return [Source(**{**row, "units": int(row["units"])}) for row in rows]


def _source_now(name: str, row: Any) -> Source:
    if row is None:
        return Source(name, 0, 0, 0, 0)
    rows, rejected = row["rows"], row["rejected"]
    return Source(name, rows, rows - rejected, rejected, int(row["units"]))


def _unequal(row: Any) -> Unequal:
    figures = (row["legacy"], row["brought"], row["counted"], row["lifetime"])
    return Unequal(
        row["user_id"], row["feature"], *(None if one is None else int(one) for one in figures)
    )
