"""A derived figure that is not what it was derived from, and the rows that would mend such figures."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from service.database import statement

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from uuid import UUID

    import asyncpg

__all__ = ["Difference", "Figures"]


class Difference(NamedTuple):
    """A figure of a user, as it is stored and as it should be.

    *figure* is table and column, or what was compared; *of* the feature or grant. One that is not
    *mendable* has lost what it would be counted from.
    """

    user_id: UUID
    figure: str
    of: str | None
    stored: int | datetime | str | None
    expected: int | datetime | str | None
    mendable: bool = True


@dataclass(slots=True)
class Figures:
    """What was found of some users: differences, and by statement the rows that would mend them."""

    differences: list[Difference] = field(default_factory=list)
    _rows: dict[str, list[tuple[Any, ...]]] = field(default_factory=dict)

    def compare(
        self,
        user_id: UUID,
        figure: str,
        of: str | None,
        stored: int | datetime | str | None,
        expected: int | datetime | str,
        *,
        mendable: bool = True,
    ) -> bool:
        """Note it if they differ; whether they do."""
        if stored == expected:
            return False
        self.differences.append(Difference(user_id, figure, of, stored, expected, mendable))
        return True

    def mend_with(self, name: str, row: tuple[Any, ...]) -> None:
        """Have the statement `verify_set_NAME` write *row*."""
        self._rows.setdefault(name, []).append(row)

    async def mend(self, connection: asyncpg.Connection[Any], *, timeout_s: float) -> None:
        """Write every row, in the transaction of *connection*."""
        for name, rows in self._rows.items():
            sql = statement("service", f"verify_set_{name}")
            await connection.execute(sql, *_columns(rows), timeout=timeout_s)


def _columns(rows: Sequence[tuple[Any, ...]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]
