"""A change of a user's credits in PostgreSQL: one transaction, while the user stands still.

What a process does that dies in it: before the commit nothing has changed, and the user is loaded as it
was once the token has expired; after the commit everything has, and the note of the change is left for
the worker. The shard's row is locked too, so a worker that applies what should not have been admitted
(Redis was lost in the middle, with the token) waits for the change, and counts after it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import structlog
from redis.exceptions import RedisError

from quota.errors import QuotaUnavailableError, UnknownUserError
from quota.values import instant_ms
from service.accounts import StoredAccount, load_account, store_account
from service.database import statement
from service.staleness import drop_stale_users
from service.still import TOKEN_MS, WAIT_S, standing_still

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from datetime import datetime

    import asyncpg

    from quota.keys import Keys
    from quota.rules import Rules
    from quota.scripts import Client
    from quota.values import User
    from service.database import Database
    from service.still import Confirm, Settle

__all__ = ["LATE_GRACE_MS", "Change", "Stores", "changing_credits", "drop_quietly", "still_user"]

LATE_GRACE_MS = 3_600_000  # the default of LATE_GRACE
_log = structlog.get_logger("allotment.changes")


class Stores:
    """Where a change is made: the database, Redis with its keys; *grace_ms* is the setting LATE_GRACE.

    *settle* applies the log in this process; without it a worker has to. *roll* is `Quota.roll`: holds
    that are over end in Redis then, which remembers how. Without it they end with the change, and who
    commits one afterwards is told that there is none. *wait_s* is for a user to stand still.
    """

    def __init__(
        self,
        database: Database,
        redis: Client,
        keys: Keys,
        *,
        settle: Settle = None,
        roll: Callable[..., Awaitable[object]] | None = None,
        grace_ms: int = LATE_GRACE_MS,
        wait_s: float = WAIT_S,
    ) -> None:
        self.database = database
        self.redis = redis
        self.keys = keys
        self.settle = settle
        self.roll = roll
        self.grace_ms = grace_ms
        self.wait_s = wait_s


class Change:
    """A change under way: the transaction, the account as it stands at its instant, and that instant."""

    def __init__(
        self, connection: asyncpg.Connection[Any], stored: StoredAccount, at_ms: int
    ) -> None:
        self.connection = connection
        self.stored = stored
        self.at_ms = at_ms


@asynccontextmanager
async def changing_credits(
    stores: Stores, user: User, rules: Rules, *, at: datetime | None = None, before_ms: int = 0
) -> AsyncIterator[Change]:
    """A block that changes the account of *user* at *at* (None: PostgreSQL's now); committed on leaving.

    The account comes walked to *before_ms* ahead of that instant.

    Raises:
        UnknownUserError: there is no such user.
        QuotaUnavailableError: the user could not be made to stand still, see `service.still`.
    """
    async with still_user(stores, user, at=at) as confirm:
        async with stores.database.connection() as connection, connection.transaction():
            shard = stores.keys.shard_of(user.id).index
            await connection.fetchrow(statement("service", "hold_shard"), shard)
            now = await connection.fetchval(statement("service", "lock_user"), user.id)
            if now is None:
                raise UnknownUserError(user.text)
            at_ms = instant_ms(at or now)
            stored = await load_account(connection, user.id, rules, at_ms=at_ms - before_ms)
            yield Change(connection, stored, at_ms)
            await store_account(connection, stored)
            await connection.execute(statement("service", "note_stale_user"), user.id)
            await confirm()
        await drop_quietly(stores, user)


@asynccontextmanager
async def still_user(stores: Stores, user: User, *, at: datetime | None) -> AsyncIterator[Confirm]:
    """A block in which *user* stands still, with no hold in Redis that is over at *at*.

    What it gets has to be called before a commit, see `service.still`.
    """
    if stores.roll is not None:
        # Whoever died in a change of the user keeps it away for so long.
        wait_s = stores.wait_s + TOKEN_MS / 1000
        try:
            async with asyncio.timeout(wait_s):
                await stores.roll(user.text, now=at)
        except UnknownUserError:
            pass
        except TimeoutError:
            message = f"holds of a user could not be ended within {wait_s:g} s"
            raise QuotaUnavailableError(message) from None
    async with standing_still(
        stores.database,
        stores.redis,
        stores.keys,
        user,
        settle=stores.settle,
        wait_s=stores.wait_s,
    ) as confirm:
        yield confirm


async def drop_quietly(stores: Stores, user: User) -> None:
    """Drop a changed user from Redis; if that fails, the worker does it by the note of the change."""
    try:
        await drop_stale_users(stores.database, stores.redis, stores.keys, user_id=user.id)
    except RedisError as error:  # the change is made: this must not make a failure of it
        _log.warning("change.not_dropped", error=str(error))
