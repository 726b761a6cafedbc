"""How many users a process counts anew at once: as many as it can in time, and who takes too long alone, seldom."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

__all__ = ["USERS_MAX", "Pace", "RecountTooSlowError"]

USERS_MAX = 200  # counted anew in one fold
_AGAIN_AFTER_S = 600.0  # each attempt keeps the fence for as long as it may take


class RecountTooSlowError(Exception):
    """Users could not be counted anew in the time that a worker has for it; `allotment rebuild --user` takes longer."""

    def __init__(self, users: Sequence[UUID], seconds_max: float) -> None:
        which = f"user {users[0]}" if len(users) == 1 else f"{len(users)} users"
        super().__init__(f"{which} could not be counted anew in {seconds_max:g} s")
        self.users = users


@dataclass(slots=True)
class Pace:
    """What a process remembers of that from fold to fold."""

    users_max: int = USERS_MAX
    _alone_until: dict[UUID, float] = field(default_factory=dict)

    def left_alone(self) -> list[UUID]:
        """Who was too slow alone a short time ago."""
        now = time.monotonic()
        self._alone_until = {one: until for one, until in self._alone_until.items() if until > now}
        return list(self._alone_until)

    def in_time(self) -> None:
        """Users were counted anew in time: more of them the next time."""
        self.users_max = min(USERS_MAX, 2 * self.users_max)

    def too_slow(self, users: Sequence[UUID]) -> None:
        """*users* were not: half of them the next time, or the others first."""
        if len(users) == 1:
            self._alone_until[users[0]] = time.monotonic() + _AGAIN_AFTER_S
        self.users_max = max(1, len(users) // 2)
