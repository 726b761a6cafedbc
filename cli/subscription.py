"""The running time on a tier, in a line for a person."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["subscription_line"]


def subscription_line(running: Mapping[str, Any]) -> dict[str, str]:
    """Name and value of the line that tells of *running*, as `service.subscriptions.Stretch.as_dict` has it."""
    if running["ends_at"] is None:
        return {"subscription": f"day {running['day']}, no end"}
    return {
        "subscription": f"day {running['day']} of {running['days']}, "
        f"{running['days_remaining']} remaining, until {running['ends_at']}"
    }
