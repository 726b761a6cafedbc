"""Drops from Redis the users that changed in PostgreSQL, so that their next decision loads them again.

The change and the note of it are one transaction. Whoever made the change drops the user at once;
if it dies before, the worker finds the note within a second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from quota.scripts import ScriptCaller, script
from service.database import statement

if TYPE_CHECKING:
    from uuid import UUID

    from quota.keys import Keys
    from quota.scripts import Client
    from service.database import Database

__all__ = ["drop_stale_users"]

_USERS_MAX = 1000  # in one round; the next one follows at once
_TIMEOUT_S = 5.0


async def drop_stale_users(
    database: Database, redis: Client, keys: Keys, *, user_id: UUID | None = None
) -> int:
    """Drop every user that is noted as changed, or only *user_id*; return how many.

    The note goes after the user: dying in between drops the user twice, which harms nobody.
    """
    dropped = 0
    while True:
        async with database.connection() as connection:
            notes = await connection.fetch(statement("service", "stale_users"), user_id, _USERS_MAX)
        users = {note["user_id"] for note in notes}
        await _forget(redis, keys, users)
        if notes:
            async with database.connection() as connection:
                await connection.execute(
                    statement("service", "delete_stale_users"),
                    [note["user_id"] for note in notes],
                    [note["change"] for note in notes],
                )
        dropped += len(users)
        if len(notes) < _USERS_MAX:
            return dropped


async def _forget(redis: Client, keys: Keys, users: set[UUID]) -> None:
    by_shard: dict[int, list[str]] = {}
    for user_id in users:
        shard, name = keys.shard_of(user_id), user_id.hex
        by_shard.setdefault(shard.index, []).extend(
            [shard.user_of(name), shard.grants_of(name), shard.token_of(name)]
        )
    caller = ScriptCaller(redis, timeout_s=_TIMEOUT_S)
    try:
        for names in by_shard.values():
            await caller.call(script("forget"), names, [])
    finally:
        await caller.close()
