"""Whether users are on the tiers that their subscriptions say, one stretch after the other.

Nothing of it is mended: another tier has other limits and another allowance, which only a move gives
(`allotment user set USER --tier TIER`), and a history that has gaps has lost what was in them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from service.database import statement
from service.verify_usage import STATEMENT_S_MAX

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

    import asyncpg

    from service.figures import Figures

__all__ = ["compare_subscriptions"]


async def compare_subscriptions(
    connection: asyncpg.Connection[Any], users: Mapping[UUID, Any], figures: Figures
) -> None:
    """Compare `users.tier` with the stretch that runs, of *users*, rows of `verify_users`.

    A user without a row is on the tier that it was made on.
    """
    rows = await connection.fetch(
        statement("service", "verify_subscriptions"), list(users), timeout=STATEMENT_S_MAX
    )
    for row in rows:
        user_id, running = row["user_id"], row["running"]
        figures.compare(user_id, "subscriptions.running", None, len(running), 1, mendable=False)
        if len(running) == 1:
            tier = users[user_id]["tier"]
            figures.compare(user_id, "users.tier", None, tier, running[0], mendable=False)
        figures.compare(user_id, "subscriptions.gaps", None, row["gaps"], 0, mendable=False)
