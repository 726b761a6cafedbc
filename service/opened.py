"""Windows of so many seconds that users open by use, where two have opened one and neither knew of the other.

Redis opens them, and so does `increment_feature_usage()`, of which Redis hears a second later. Two that overlap are
one, and nobody gets both: it ends when the first of them does, with the units of both.
"""

from __future__ import annotations

__all__ = ["add_opened", "has_units_of"]


def has_units_of(running_end_ms: int, end_ms: int, *, seconds: int) -> bool:
    """Whether what was counted in the window that ends at *end_ms* is in the one that was opened last.

    What overlapped has become one with it, and ends no later; a window that came after both ends later.
    """
    return end_ms - seconds * 1000 < running_end_ms <= end_ms


def add_opened(
    running: tuple[int, int] | None, end_ms: int, units: int, *, seconds: int
) -> tuple[int, int]:
    """End in ms and units of the window opened last, after *units* in the one that ends at *end_ms*.

    *running* is what there was; fewer than no units come back. worker/sql/add_windows.sql is the same rule, and
    alembic/sql/0006/count_usage.sql.
    """
    if running is None:
        return end_ms, max(0, units)
    running_end_ms, before = running
    if units < 0:
        back = units if has_units_of(running_end_ms, end_ms, seconds=seconds) else 0
        return running_end_ms, max(0, before + back)
    if running_end_ms <= end_ms - seconds * 1000:
        return end_ms, units
    if end_ms <= running_end_ms - seconds * 1000:
        return running
    return min(running_end_ms, end_ms), before + units
