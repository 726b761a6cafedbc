"""What a user's stretches on tiers come to: the subscription history of seed 002.

Time alone adds months to it, so that it is counted when it is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from service.database import statement

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from decimal import Decimal
    from uuid import UUID

    import asyncpg

__all__ = ["Subscribed", "subscribed_of"]


@dataclass(frozen=True, slots=True)
class Subscribed:
    """Whole months on tiers other than the default, what they brought in, and the highest of them."""

    months_subscribed: int
    total_revenue: Decimal
    highest_tier_reached: str

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {
            "months_subscribed": self.months_subscribed,
            "total_revenue": f"{self.total_revenue:.2f}",
            "highest_tier_reached": self.highest_tier_reached,
        }


async def subscribed_of(
    connection: asyncpg.Connection[Any], user_ids: Sequence[UUID], *, at: datetime
) -> dict[UUID, Subscribed]:
    """The history of each of these users up to *at*; of one that does not exist there is none."""
    rows = await connection.fetch(statement("service", "subscribed"), list(user_ids), at)
    return {
        row["user_id"]: Subscribed(
            row["months_subscribed"], row["total_revenue"], row["highest_tier_reached"]
        )
        for row in rows
    }
