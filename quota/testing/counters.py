"""Units used in every period, kept for `quota.testing`.

Nothing is ever set back to zero: a period that begins is another entry, so rolling over is looking
somewhere else, and what was taken in a period can be given back to it when it is over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from quota.decision import LimitState, remaining_of
from quota.period import CALENDAR_PERIODS, Window, window_at

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from quota.decision import Limit
    from quota.period import Calendar

__all__ = ["Counters", "Place"]

Place = tuple[str, int]  # a period, and the start of the window of it that counted


class Counters:
    """What one user has used, by feature, period and window."""

    def __init__(self) -> None:
        self._used: dict[tuple[str, Place], int] = {}
        self._opened: dict[tuple[str, str], Window] = {}  # the window that was opened last
        self.features: set[str] = set()

    def window(self, feature: str, per: str, at_ms: int, calendar: Calendar) -> Window:
        """The window of *per* that a use at *at_ms* counts in; one of seconds may open with it."""
        if per in CALENDAR_PERIODS:
            return window_at(per, at_ms, calendar)
        if self.is_open(feature, per, at_ms):
            return self._opened[feature, per]
        return Window(at_ms, at_ms + 1000 * int(per.partition(":")[2]))

    def is_open(self, feature: str, per: str, at_ms: int) -> bool:
        """Whether the window runs already: one of seconds does from its first use on."""
        opened = self._opened.get((feature, per))
        return per in CALENDAR_PERIODS or (
            opened is not None and opened.end_ms is not None and at_ms < opened.end_ms
        )

    def state(self, feature: str, limit: Limit, window: Window) -> LimitState:
        """*limit* on *feature* and what is used of it in *window*."""
        per, mode, most = limit
        used = self._used.get((feature, (per, window.start_ms)), 0)
        remaining = remaining_of(most, used=used)
        return LimitState(per, mode, used, most, remaining, window.end_ms)

    def add(self, feature: str, amount: int, windows: Mapping[str, Window]) -> list[Place]:
        """Count *amount* in each of *windows*; return where, for `give_back`."""
        places = []
        self.features.add(feature)
        for per, window in windows.items():
            place = (per, window.start_ms)
            self._used[feature, place] = self._used.get((feature, place), 0) + amount
            places.append(place)
            if per not in CALENDAR_PERIODS:
                self._opened[feature, per] = window
        return places

    def give_back(self, feature: str, amount: int, places: Iterable[Place]) -> None:
        """Count *amount* no more where it was counted."""
        for place in places:
            left = self._used.get((feature, place), 0) - amount
            assert left >= 0
            self._used[feature, place] = left

    def forget_calendar(self) -> None:
        """Drop what is counted by the calendar, for a calendar that changed: it is counted anew."""
        self._used = {
            (feature, place): used
            for (feature, place), used in self._used.items()
            if place[0] not in CALENDAR_PERIODS
        }
