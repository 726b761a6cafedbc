"""Users in PostgreSQL: made on first use, moved between tiers, looked up for loading."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy.dialects.postgresql import insert
from sqlmodel import col, func, select

from models import StaleRollup, StaleUser, User
from quota.errors import InvalidValueError, UnknownUserError
from quota.period import parse_anchor, parse_cycle_months, parse_timezone
from quota.values import instant_ms
from service.accounts import load_account, store_account
from service.changes import LATE_GRACE_MS
from service.database import driver_of
from service.recount import hold_shard_of, recount_user
from service.stretches import change_stretch

if TYPE_CHECKING:
    from datetime import datetime
    from decimal import Decimal

    from sqlmodel.ext.asyncio.session import AsyncSession

    from quota.rules import Rules
    from quota.values import User as UserId
    from service.stretches import Until

__all__ = ["find_user", "mark_stale", "provision_user", "put_user"]


async def provision_user(
    session: AsyncSession, user: UserId, rules: Rules, *, at: datetime
) -> None:
    """Make *user* on the default tier at *at*, its anchor, unless there is one.

    There is no subscription then: without one, a user has been on its tier since it was made.
    """
    fields = {
        "id": user.id,
        "external_id": user.external_id,
        "tier": rules.default_tier,
        "anchor": at,
        "created_at": at,
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
    at: datetime | None = None,
    tier: str | None = None,
    timezone: str | None = None,
    anchor: datetime | None = None,
    cycle_months: int | None = None,
    until: Until | None = None,
    revenue: Decimal | None = None,
    grace_ms: int = LATE_GRACE_MS,
) -> User:
    """Make or change *user* at *at* (None: PostgreSQL's now); what is None stays as it is.

    What was used stays used, in the new periods and of the new tier's allowance. A user who is in
    use is changed by `service.moves.move_user`, while it stands still: what waits in the log would be
    charged by the new tier otherwise. What came late up to *grace_ms* after the end of a period counts there.
    *until* and *revenue* are of the stretch on the tier, see `service.stretches.change_stretch`.

    Raises:
        InvalidValueError: a value was refused; its field is named.
    """
    changes = _checked(
        rules, {"tier": tier, "timezone": timezone, "anchor": anchor, "cycle_months": cycle_months}
    )
    if changes:
        await hold_shard_of(session, user.id)
    if at is None:
        at = (await session.exec(select(func.clock_timestamp()))).one()
    await provision_user(session, user, rules, at=at)
    found = await find_user(session, user, lock=True)
    before = {name: getattr(found, name) for name in changes}
    await _move_allowance(session, found, rules, changes, at=at)
    for name, value in changes.items():
        setattr(found, name, value)
    session.add(found)
    if "timezone" in changes and before["timezone"] != timezone:
        session.add(
            StaleRollup(user_id=found.id)
        )  # every day and month of the user begins elsewhere
    await change_stretch(
        session,
        found,
        tier_before=before.get("tier", found.tier),
        default_tier=rules.default_tier,
        tier=tier,
        until=until,
        revenue=revenue,
        at=at,
    )
    if any(before[name] != value for name, value in changes.items() if name != "tier"):
        await session.flush()
        await recount_user(session, found, at=at, grace_ms=grace_ms)
    mark_stale(session, user)
    return found


def _checked(rules: Rules, asked: dict[str, Any]) -> dict[str, Any]:
    """What of *asked* is given; values are those that the calendar takes."""
    changes = {name: value for name, value in asked.items() if value is not None}
    if "tier" in changes and changes["tier"] not in rules.tiers:
        expected = f"one of the tiers: {', '.join(rules.tiers)}"
        raise InvalidValueError("tier", changes["tier"], expected)
    if "timezone" in changes:
        parse_timezone(changes["timezone"])
    if "anchor" in changes:
        parse_anchor(changes["anchor"])
    if "cycle_months" in changes:
        parse_cycle_months(changes["cycle_months"])
    return changes


async def _move_allowance(
    session: AsyncSession, found: User, rules: Rules, changes: dict[str, Any], *, at: datetime
) -> None:
    """Put the allowance of the new tier, or on the new anchor, in the place of the one there is."""
    tier, anchor = changes.get("tier", found.tier), changes.get("anchor", found.anchor)
    if (tier, anchor) == (found.tier, found.anchor):
        return
    connection, at_ms = await driver_of(session), instant_ms(at)
    stored = await load_account(connection, found.id, rules, at_ms=at_ms)
    stored.change_allowance(rules.tiers[tier], anchor_ms=instant_ms(anchor), at_ms=at_ms)
    await store_account(connection, stored)
    await session.refresh(found)  # its overage may have been repaid


def mark_stale(session: AsyncSession, user: UserId) -> None:
    """Note in this transaction that Redis must drop the user; see `service.staleness`."""
    session.add(StaleUser(user_id=user.id))
