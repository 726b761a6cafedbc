"""Ends a stretch on a tier whose time is over: the user goes to the default tier, as by any other move.

It is one transaction on a user that stands still, and it looks again once it has the user: of two that
come at once, or of one that comes after a renewal, the second finds nothing to do. Who dies before the commit has
changed nothing, and the stretch is found again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlmodel import func, select

from service.changes import drop_quietly, still_user
from service.recount import hold_shard_of
from service.subscriptions import running_subscription
from service.users import find_user, put_user

if TYPE_CHECKING:
    from datetime import datetime

    from models import Subscription
    from quota.rules import Rules
    from quota.values import User
    from service.changes import Stores

__all__ = ["expire_subscription"]


async def expire_subscription(
    stores: Stores, user: User, rules: Rules, *, at: datetime | None = None
) -> Subscription | None:
    """End what runs of *user* if it is over at *at* (None: PostgreSQL's now); None: it is not.

    Raises:
        UnknownUserError: the user was erased.
        QuotaUnavailableError: the user could not be made to stand still, see `service.still`.
    """
    async with still_user(stores, user, at=at) as confirm:
        async with stores.database.session() as session:
            await hold_shard_of(session, user.id)
            now = at or (await session.exec(select(func.clock_timestamp()))).one()
            found = await find_user(session, user, lock=True)
            running = await running_subscription(session, found)
            if running is None or running.ends_at is None or running.ends_at > now:
                return None
            await put_user(
                session, user, rules, at=now, tier=rules.default_tier, grace_ms=stores.grace_ms
            )
            await session.flush()
            await confirm()
        await drop_quietly(stores, user)
    return running
