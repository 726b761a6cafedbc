"""Gives a grant while its user stands still, so that it pays for nothing that was admitted before it was given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quota.values import instant_ms
from service.accounts import load_account, store_account
from service.changes import drop_quietly, still_user
from service.database import driver_of
from service.grants import add_grant, checked_grant
from service.recount import hold_shard_of
from service.users import find_user, mark_stale, provision_user

if TYPE_CHECKING:
    from datetime import datetime

    from sqlmodel.ext.asyncio.session import AsyncSession

    from models import CreditGrant
    from quota.rules import Rules
    from quota.values import User
    from service.changes import Stores

__all__ = ["give_grant"]


async def give_grant(
    stores: Stores, user: User, rules: Rules, *, at: datetime | None = None, **fields: Any
) -> CreditGrant:
    """Give *user* credits at *at* (None: PostgreSQL's now); *fields* as of `service.grants.add_grant`.

    A grant may begin in the past, as of when it should have been given. What was used up to *at* is
    paid by then, whether it was applied or waited in the log, and stays paid as it was. If it is active at
    *at*, it repays overage there and then.

    Raises:
        InvalidValueError: a value was refused, or the name belongs to another grant; nothing changed.
        QuotaUnavailableError: the user could not be made to stand still.
    """
    given_at = at or await _now(stores)
    checked_grant(user, at=given_at, **fields)  # before anybody has to wait for it
    async with still_user(stores, user, at=at) as confirm:
        async with stores.database.session() as session:
            await hold_shard_of(session, user.id)
            await provision_user(session, user, rules, at=given_at)
            await find_user(session, user, lock=True)
            # What happened by itself up to now did so without this grant.
            await _walk_stored(session, user, rules, at=given_at)
            grant = await add_grant(session, user, rules, at=given_at, **fields)
            mark_stale(session, user)  # of a repeat too: the account may have moved
            await session.flush()
            # What it repays is written now: who looks when it is over finds it done.
            await _walk_stored(session, user, rules, at=given_at)
            await confirm()
        await drop_quietly(stores, user)
    return grant


async def _walk_stored(session: AsyncSession, user: User, rules: Rules, *, at: datetime) -> None:
    """Write down what happened by itself to the user's credits up to *at*."""
    connection = await driver_of(session)
    await store_account(
        connection, await load_account(connection, user.id, rules, at_ms=instant_ms(at))
    )


async def _now(stores: Stores) -> datetime:
    async with stores.database.connection() as connection:
        now: datetime = await connection.fetchval("SELECT clock_timestamp()")
    return now
