"""What the callers were told: the demo's own book, which the audit holds against the stores."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from quota.decision import UNAVAILABLE
from quota.errors import KeyConflictError
from quota.values import parse_user_id

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from quota.decision import Decision

__all__ = ["Entry", "Ledger"]


class Entry(NamedTuple):
    """A line that was admitted, as its caller was told; cost None: the caller was told none."""

    user_id: UUID
    key: str
    line: int
    feature: str
    amount: int
    cost_micro: int | None
    verb: str


@dataclass(slots=True)
class Ledger:
    """Every answer: admitted lines one by one, everything else counted."""

    entries: list[Entry] = field(default_factory=list)
    # Keys whose fate their caller does not know, because no answer came: either is right.
    unanswered: dict[tuple[UUID, str], None] = field(default_factory=dict)
    outcomes: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # user, feature, code
    calls: int = 0
    replayed: int = 0
    conflicts: int = 0
    answered_twice: int = 0  # keys that were admitted anew although they had been
    _fresh: dict[tuple[UUID, str], bool] = field(default_factory=dict)

    def decided(self, user: str, lines: Sequence[Decision], *, verb: str) -> None:
        """Note the answer to one record; its lines share a key and a fate."""
        first, user_id = lines[0], parse_user_id(user).id
        self.calls += 1
        for line in lines:
            self.outcomes[user, line.feature, "replayed" if line.replayed else line.code] += 1
        self.replayed += first.replayed
        if first.code == UNAVAILABLE:
            self.unanswered[user_id, first.key] = None
        elif first.allowed:
            self._admitted(user_id, lines, verb=verb)

    def checked(self) -> None:
        """Note a question that takes nothing."""
        self.calls += 1

    def conflicted(self, user: str, feature: str) -> None:
        """Note that the key was refused, because it stands for another record."""
        self.calls += 1
        self.conflicts += 1
        self.outcomes[user, feature, KeyConflictError.code] += 1

    def unknown(self, user: str, feature: str, key: str) -> None:
        """Note that no answer came, so that nobody knows whether it was counted."""
        self.calls += 1
        self.outcomes[user, feature, UNAVAILABLE] += 1
        self.unanswered[parse_user_id(user).id, key] = None

    def expect(self, user: str, feature: str, amount: int, key: str) -> None:
        """Note a record that goes in without an answer (through arq) and has to arrive."""
        self.calls += 1
        self.entries.append(Entry(parse_user_id(user).id, key, 0, feature, amount, None, "record"))

    def _admitted(self, user_id: UUID, lines: Sequence[Decision], *, verb: str) -> None:
        mark = user_id, lines[0].key
        fresh = not lines[0].replayed
        self.unanswered.pop(mark, None)
        if mark not in self._fresh:
            self.entries += [
                Entry(user_id, line.key, number, line.feature, line.amount, line.cost_micro, verb)
                for number, line in enumerate(lines)
            ]
        elif fresh and self._fresh[mark]:
            self.answered_twice += 1
        self._fresh[mark] = fresh or self._fresh.get(mark, False)
