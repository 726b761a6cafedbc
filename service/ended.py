"""How a hold ended, for whoever asks when Redis does not know it any more: it was emptied, or it is long ago."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from service.database import statement
from service.snapshot import read_snapshot
from service.usage_log import COMMIT, EXPIRE, RELEASE, RESERVE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from quota.keys import Keys
    from quota.scripts import Client
    from quota.values import User
    from service.database import Database
    from service.snapshot import Event

__all__ = ["ended_hold"]

_STATUS = {COMMIT: "committed", RELEASE: "released", EXPIRE: "expired"}


async def ended_hold(
    database: Database, redis: Client, keys: Keys, user: User, key: str
) -> dict[str, Any] | None:
    """Status, amount and cost_micro of the hold *key*; None: it is open, or there is none.

    Of what is not applied yet, the log tells.
    """
    found = await _stored_end(database, user, key)
    if found is None:
        stored, tail = await read_snapshot(database, redis, keys.shard_of(user.id), [user.id])
        is_open = any(key in one.holds for one in stored)
        found = _logged_end(tail.get(user.id, ()), key, is_open=is_open)
    # It may have been applied between the two.
    return found or await _stored_end(database, user, key)


async def _stored_end(database: Database, user: User, key: str) -> dict[str, Any] | None:
    async with database.connection() as connection:
        row = await connection.fetchrow(statement("service", "hold_end"), user.id, key)
    return None if row is None or row["status"] == "open" else dict(row)


def _logged_end(events: Iterable[Event], key: str, *, is_open: bool) -> dict[str, Any] | None:
    """The end that counts of a hold is the first while it is open."""
    for line, cost, _ in events:
        if line.code is None or line.key != key:
            continue
        if line.code.op == RESERVE:
            is_open = True
        elif is_open:
            kept, kept_micro = (line.amount, cost) if line.code.op == COMMIT else (0, 0)
            return {"status": _STATUS[line.code.op], "amount": kept, "cost_micro": kept_micro}
    return None
