"""Grants of credits: written to PostgreSQL, which is the truth; Redis loads the user again.

`add_grant` is the transaction. To a user who is in use `service.giving.give_grant` gives, while it stands
still: a grant pays for what waits in the log from its own instant on, which may lie in the past.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID, uuid4

from sqlmodel import col, select

from models import CreditEntry, CreditGrant
from quota.allowance import ALLOWANCE_NAME
from quota.burndown import KINDS
from quota.errors import InvalidValueError
from quota.period import RENEWALS
from quota.values import GIVEN, MICRO_MAX, credits_of, instant_ms, new_key, parse_key
from service.accounts import stored_grant
from service.instants import check_instant
from service.users import find_user, mark_stale, provision_user

if TYPE_CHECKING:
    from datetime import datetime

    from sqlmodel.ext.asyncio.session import AsyncSession

    from quota.rules import Rules
    from quota.values import User

__all__ = ["add_grant", "checked_grant", "stored_grant"]

_PRIORITY_MAX = 32_767  # a smallint
_SAME = (
    "amount_micro",
    "priority",
    "kind",
    "expires_at",
    "every",
    "min_rollover_micro",
    "max_rollover_micro",
)


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
    every: str | None = None,
    min_rollover_micro: int = 0,
    max_rollover_micro: int = 0,
) -> CreditGrant:
    """Give *user* credits, from *effective_at* (default *at*) until *expires_at* (default never).

    With *every* (day, week or month) they are set back to the amount at each recurrence. A credit
    reset leaves at most *max_rollover_micro* of it, and makes it *min_rollover_micro* at least.
    With a *name*, a repeat answers the grant that is there, if it is the same; one that does not say when
    it begins is.

    Raises:
        InvalidValueError: a value was refused, or the name belongs to another grant; nothing changed.
    """
    grant = checked_grant(
        user,
        amount_micro=amount_micro,
        at=at,
        name=name,
        priority=priority,
        kind=kind,
        effective_at=effective_at,
        expires_at=expires_at,
        every=every,
        min_rollover_micro=min_rollover_micro,
        max_rollover_micro=max_rollover_micro,
    )
    await provision_user(session, user, rules, at=at)
    # Two grants of one name at once: the second sees the first.
    await find_user(session, user, lock=True)
    if name is not None:
        there = await _named(session, user.id, name)
        if there is not None:
            return _same_or_refused(there, grant, effective_at)
    session.add(grant)
    session.add(_entry(grant))
    mark_stale(session, user)
    return grant


def checked_grant(
    user: User,
    *,
    amount_micro: int,
    at: datetime,
    name: str | None = None,
    priority: int = 1,
    kind: str = "granted",
    effective_at: datetime | None = None,
    expires_at: datetime | None = None,
    every: str | None = None,
    min_rollover_micro: int = 0,
    max_rollover_micro: int = 0,
) -> CreditGrant:
    """The grant that `add_grant` makes of these.

    Raises:
        InvalidValueError: a value was refused; its field is named.
    """
    effective_at = effective_at or at
    _check_amounts(amount_micro, min_rollover_micro, max_rollover_micro)
    _check_words(priority, kind, every)
    _check_stretch(effective_at, expires_at)
    return CreditGrant(
        user_id=user.id,
        id=uuid4(),
        name=name if name is None else _name(name),
        amount_micro=amount_micro,
        left_micro=amount_micro,
        priority=priority,
        kind=kind,
        effective_at=effective_at,
        expires_at=expires_at,
        created_at=at,
        every=every,
        min_rollover_micro=min_rollover_micro,
        max_rollover_micro=max_rollover_micro,
    )


def _entry(grant: CreditGrant) -> CreditEntry:
    """What says that the credits were given."""
    return CreditEntry(
        user_id=grant.user_id,
        id=UUID(new_key(now_ms=instant_ms(grant.created_at))),
        grant_id=grant.id,
        kind="granted",
        amount_micro=grant.amount_micro,
        created_at=grant.created_at,
    )


def _check_amounts(amount: int, least: int, most: int) -> None:
    if amount == 0:
        raise InvalidValueError("amount", amount, GIVEN)
    for field, micro in (("amount", amount), ("min_rollover", least), ("max_rollover", most)):
        if type(micro) is not int or not 0 <= micro <= MICRO_MAX:
            raise InvalidValueError(field, micro, f"micro-credits from 0 to {MICRO_MAX}")
    if least > most:
        expected = f"at most max_rollover, {credits_of(most):f}"
        raise InvalidValueError("min_rollover", f"{credits_of(least):f}", expected)


def _check_words(priority: object, kind: object, every: object) -> None:
    if type(priority) is not int or not 0 <= priority <= _PRIORITY_MAX:
        raise InvalidValueError("priority", priority, f"an integer from 0 to {_PRIORITY_MAX}")
    if kind not in KINDS:
        raise InvalidValueError("kind", kind, f"one of {', '.join(KINDS)}")
    if every is not None and every not in RENEWALS:
        raise InvalidValueError("every", every, f"one of {', '.join(RENEWALS)}")


def _check_stretch(effective_at: datetime, expires_at: datetime | None) -> None:
    check_instant(effective_at, field="effective_at")
    if expires_at is None:
        return
    check_instant(expires_at, field="expires_at")
    if expires_at <= effective_at:
        raise InvalidValueError(
            "expires_at",
            expires_at.isoformat(),
            f"later than effective_at, {effective_at.isoformat()}",
        )


def _name(name: str) -> str:
    if name == ALLOWANCE_NAME:
        raise InvalidValueError("id", name, "another name: this is that of the tier's credits")
    try:
        return parse_key(name)
    except InvalidValueError as error:
        raise InvalidValueError("id", name, error.expected) from None


async def _named(session: AsyncSession, user_id: UUID, name: str) -> CreditGrant | None:
    query = select(CreditGrant).where(
        col(CreditGrant.user_id) == user_id, col(CreditGrant.name) == name
    )
    return (await session.exec(query)).one_or_none()


def _same_or_refused(
    there: CreditGrant, asked: CreditGrant, begins_at: datetime | None
) -> CreditGrant:
    for field in _SAME if begins_at is None else (*_SAME, "effective_at"):
        if getattr(there, field) != getattr(asked, field):
            raise InvalidValueError(
                "id",
                asked.name,
                f"a new name: this grant exists with another {field.removesuffix('_micro')}",
            )
    return there
