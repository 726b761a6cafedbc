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

    from sqlmodel.ext.asyncio.session import AsyncSession

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
    async with stores.database.session() as session:
        if await _over(session, user, await _now(session, at)) is None:
            return None  # nobody has to wait for it
    async with still_user(stores, user, at=at) as confirm:
        async with stores.database.session() as session:
            await hold_shard_of(session, user.id)
            now = await _now(session, at)
            ended = await _over(session, user, now, lock=True)
            if ended is None:
                return None
            await put_user(
                session, user, rules, at=now, tier=rules.default_tier, grace_ms=stores.grace_ms
            )
            await session.flush()
            await confirm()
        await drop_quietly(stores, user)
    return ended


async def _over(
    session: AsyncSession, user: User, now: datetime, *, lock: bool = False
) -> Subscription | None:
    """What runs of *user*, if its time is over."""
    running = await running_subscription(session, await find_user(session, user, lock=lock))
    return running if running and running.ends_at and running.ends_at <= now else None


async def _now(session: AsyncSession, at: datetime | None) -> datetime:
    return at or (await session.exec(select(func.clock_timestamp()))).one()
