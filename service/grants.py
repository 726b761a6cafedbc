"""Grants of credits: written to PostgreSQL, which is the truth; Redis loads the user again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from sqlmodel import col, select

from models import CreditGrant
from quota.burndown import KINDS, Grant
from quota.errors import InvalidValueError
from quota.values import parse_key
from service.users import find_user, mark_stale, provision_user

if TYPE_CHECKING:
    from datetime import datetime

    from sqlmodel.ext.asyncio.session import AsyncSession

    from quota.rules import Rules
    from quota.values import User

__all__ = ["add_grant", "stored_grant"]

_PRIORITY_MAX = 32_767  # a smallint


async def add_grant(
    session: AsyncSession,
    user: User,
    rules: Rules,
    *,
    amount_micro: int,
    at: datetime,
    name: str | None = None,
    priority: int = 1,
    kind: str = "granted",
    effective_at: datetime | None = None,
    expires_at: datetime | None = None,
) -> CreditGrant:
    """Give *user* credits, from *effective_at* (default *at*) until *expires_at* (default never).

    With a *name*, a repeat answers the grant that is there, if it is the same.

    Raises:
        InvalidValueError: a value was refused, or the name belongs to another grant; nothing changed.
    """
    effective_at = effective_at or at
    if type(priority) is not int or not 0 <= priority <= _PRIORITY_MAX:
        raise InvalidValueError("priority", priority, f"an integer from 0 to {_PRIORITY_MAX}")
    if kind not in KINDS:
        raise InvalidValueError("kind", kind, f"one of {', '.join(KINDS)}")
    if expires_at is not None and expires_at <= effective_at:
        raise InvalidValueError(
            "expires_at",
            expires_at.isoformat(),
            f"later than effective_at, {effective_at.isoformat()}",
        )
    grant = CreditGrant(
        user_id=user.id,
        id=uuid4(),
        name=name if name is None else parse_key(name),
        amount_micro=amount_micro,
        left_micro=amount_micro,
        priority=priority,
        kind=kind,
        effective_at=effective_at,
        expires_at=expires_at,
        created_at=at,
    )
    await provision_user(session, user, rules, at=at)
    await find_user(
        session, user, lock=True
    )  # two grants of one name at once: the second sees the first
    if name is not None:
        there = await _named(session, user.id, name)
        if there is not None:
            return _same_or_refused(there, grant)
    session.add(grant)
    mark_stale(session, user)
    return grant


async def _named(session: AsyncSession, user_id: UUID, name: str) -> CreditGrant | None:
    query = select(CreditGrant).where(
        col(CreditGrant.user_id) == user_id, col(CreditGrant.name) == name
    )
    return (await session.exec(query)).one_or_none()


def _same_or_refused(there: CreditGrant, asked: CreditGrant) -> CreditGrant:
    for field in ("amount_micro", "priority", "kind", "expires_at"):
        if getattr(there, field) != getattr(asked, field):
            raise InvalidValueError(
                "id", asked.name, f"a new name: this grant exists with another {field}"
            )
    return there


def stored_grant(row: Any) -> Grant:
    """A grant as the pure rules take it, from a row of `load_grants` or `member_grants`."""
    return Grant(
        id=row["id"],
        name=row["name"],
        amount=row["amount_micro"],
        left=row["left_micro"],
        priority=row["priority"],
        kind=row["kind"],
        effective_at_ms=row["effective_at_ms"],
        expires_at_ms=row["expires_at_ms"],
        voided_at_ms=row["voided_at_ms"],
        created_at_ms=row["created_at_ms"],
    )
