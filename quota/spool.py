"""Records that were admitted without Redis and wait to be recorded: bounded, each key once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uuid import UUID

    from quota.wire import Ask

__all__ = ["Spool", "Waiting"]

RECORDS_MAX = 10_000  # some seconds of a busy process, and what Redis takes in one second
BYTES_MAX = 16 * 1024 * 1024  # of their lines: metadata may make one 16 KiB long


@dataclass(slots=True, eq=False)
class Waiting:
    """A record as it was asked: *now_ms* is the instant that the caller gave, or 0; *since_s* is monotonic.

    *sent* is the form in which it is recorded, once that was made.
    """

    ask: Ask
    now_ms: int
    since_s: float
    sent: Ask | None = None

    @property
    def bytes(self) -> int:
        """How much it counts of the bound."""
        return sum(map(len, self.ask.lines))


class Spool:
    """Keeps records by their marks, and how many units of each user and feature they are."""

    def __init__(self, *, records_max: int = RECORDS_MAX, bytes_max: int = BYTES_MAX) -> None:
        self._records_max = records_max
        self._bytes_max = bytes_max
        self._bytes = 0
        self._waiting: dict[bytes, Waiting] = {}
        self._units: dict[tuple[UUID, str], int] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def find(self, mark: bytes) -> Waiting | None:
        """The record that has this mark."""
        return self._waiting.get(mark)

    def units(self, user_id: UUID, feature: str) -> int:
        """Units of a user and feature that wait."""
        return self._units.get((user_id, feature), 0)

    def add(self, waiting: Waiting) -> bool:
        """Keep a record whose mark is new; False when there is no room."""
        assert waiting.ask.mark not in self._waiting
        if len(self._waiting) >= self._records_max or self._bytes + waiting.bytes > self._bytes_max:
            return False
        self._waiting[waiting.ask.mark] = waiting
        self._bytes += waiting.bytes
        for record in waiting.ask.records:
            asked = (record.user.id, record.feature)
            self._units[asked] = self._units.get(asked, 0) + record.amount
        return True

    def drop(self, waiting: Waiting) -> None:
        """Forget a record; its units are free again."""
        del self._waiting[waiting.ask.mark]
        self._bytes -= waiting.bytes
        for record in waiting.ask.records:
            asked = (record.user.id, record.feature)
            self._units[asked] -= record.amount
            if not self._units[asked]:
                del self._units[asked]

    def put_last(self, waiting: Waiting) -> None:
        """Let all others go first."""
        self._waiting[waiting.ask.mark] = self._waiting.pop(waiting.ask.mark)

    def all(self) -> list[Waiting]:
        """Every record, the one whose turn it is first."""
        return list(self._waiting.values())
