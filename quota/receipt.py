"""What `record` answers: how much was counted, under which key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quota.decision import Decision

__all__ = ["Receipt"]


@dataclass(frozen=True, slots=True)
class Receipt:
    """A record that was counted: its lines, and the standing after each."""

    recorded: int
    replayed: bool
    key: str
    decisions: tuple[Decision, ...]

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {
            "recorded": self.recorded,
            "replayed": self.replayed,
            "key": self.key,
            "decisions": [decision.as_dict() for decision in self.decisions],
        }
