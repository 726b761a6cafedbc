"""Users in PostgreSQL: made on first use, moved between tiers, looked up for loading."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy.dialects.postgresql import insert
from sqlmodel import col, select

from models import StaleUser, User
from quota.errors import InvalidValueError, UnknownUserError
from service.recount import hold_shard_of, recount_user

if TYPE_CHECKING:
    from datetime import datetime

    from sqlmodel.ext.asyncio.session import AsyncSession

    from quota.rules import Rules
    from quota.values import User as UserId

__all__ = ["find_user", "mark_stale", "provision_user", "put_user"]


async def provision_user(
    session: AsyncSession, user: UserId, rules: Rules, *, at: datetime
) -> None:
    """Make *user* on the default tier, anchored at *at*, unless there is one."""
    fields = {
        "id": user.id,
        "external_id": user.external_id,
        "tier": rules.default_tier,
        "anchor": at,
    }
    await session.exec(insert(User).values(**fields).on_conflict_do_nothing())


async def find_user(session: AsyncSession, user: UserId, *, lock: bool = False) -> User:
    """The user's row.

    Raises:
        UnknownUserError
    """
    query = select(User).where(col(User.id) == user.id)
    found = (await session.exec(query.with_for_update() if lock else query)).one_or_none()
    if found is None:
        raise UnknownUserError(user.text)
    return found


async def put_user(
    session: AsyncSession,
    user: UserId,
    rules: Rules,
    *,
    at: datetime,
    tier: str | None = None,
    timezone: str | None = None,
    anchor: datetime | None = None,
    cycle_months: int | None = None,
) -> User:
    """Make or change *user*; what is None stays as it is.  Values are checked by the caller, but the tier."""
    if tier is not None and tier not in rules.tiers:
        raise InvalidValueError("tier", tier, f"one of the tiers: {', '.join(rules.tiers)}")
    if (timezone, anchor, cycle_months) != (None, None, None):
        await hold_shard_of(session, user.id)
    await provision_user(session, user, rules, at=at)
    found = await find_user(session, user, lock=True)
    calendar = (found.timezone, found.anchor, found.cycle_months)
    changes = {"tier": tier, "timezone": timezone, "anchor": anchor, "cycle_months": cycle_months}
    for name, value in changes.items():
        if value is not None:
            setattr(found, name, value)
    session.add(found)
    if calendar != (found.timezone, found.anchor, found.cycle_months):
        await session.flush()
        await recount_user(session, found, at=at)
    mark_stale(session, user)
    return found


def mark_stale(session: AsyncSession, user: UserId) -> None:
    """Note in this transaction that Redis must drop the user; see `service.staleness`."""
    session.add(StaleUser(user_id=user.id))
