"""Moves a user to another tier or calendar while it stands still, so that all it used counts by the old one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from service.changes import drop_quietly, still_user
from service.users import put_user

if TYPE_CHECKING:
    from datetime import datetime

    from models import User as UserRow
    from quota.rules import Rules
    from quota.values import User
    from service.changes import Stores

__all__ = ["move_user"]


async def move_user(
    stores: Stores, user: User, rules: Rules, *, at: datetime | None = None, **changes: Any
) -> UserRow:
    """Make or change *user* at *at* (None: PostgreSQL's now); *changes* as of `service.users.put_user`.

    Raises:
        InvalidValueError: a value was refused; its field is named.
        QuotaUnavailableError: the user could not be made to stand still.
    """
    async with still_user(stores, user, at=at) as confirm:
        async with stores.database.session() as session:
            row = await put_user(session, user, rules, at=at, grace_ms=stores.grace_ms, **changes)
            await session.flush()
            await confirm()
        await drop_quietly(stores, user)
    return row
