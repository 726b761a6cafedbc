"""What PostgreSQL and the unapplied log come to for a user, to be put beside what Redis has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quota.allowance import ALLOWANCE_NAME, allowance_id
from quota.errors import UnknownUserError
from service.database import statement
from service.snapshot import read_snapshot
from service.standing import standing_of

if TYPE_CHECKING:
    from quota.keys import Keys
    from quota.rules import Rules
    from quota.scripts import Client
    from quota.values import User
    from service.database import Database
    from service.log_index import LogIndex

__all__ = ["stored_standing"]

_ENTRIES = 20  # of the movements of credits; who wants more reads credit_entries


async def stored_standing(
    database: Database,
    redis: Client,
    keys: Keys,
    rules: Rules,
    user: User,
    feature: str,
    *,
    at_ms: int,
    grace_ms: int,
    index: LogIndex | None = None,
) -> dict[str, Any]:
    """The standing of *user* at *at_ms*, as JSON values; see `quota.explain.explanation_of`.

    `used` are the units of *feature* by period, `credits_micro` is less overage, `entries` are the last
    movements of credits, newest first. What is not applied yet has no entries.

    Raises:
        UnknownUserError
    """
    found, tail = await read_snapshot(
        database, redis, keys.shard_of(user.id), [user.id], index=index
    )
    if not found:
        raise UnknownUserError(user.text)
    standing = standing_of(found[0], tail[user.id], rules, at_ms=at_ms, grace_ms=grace_ms)
    standing.end_due(at_ms)
    async with database.connection() as connection:
        rows = await connection.fetch(statement("service", "last_entries"), user.id, _ENTRIES)
    account = standing.account
    counted = standing.counted.of(feature).items()
    return {
        "credits_micro": account.net(at_ms=at_ms),
        "used": {
            per: units for per, (window, units) in counted if (window.end_ms or at_ms + 1) > at_ms
        },
        "entries": [
            {
                "kind": row["kind"],
                "grant": _name(row, user),
                "amount_micro": row["amount_micro"],
                "at_ms": row["at_ms"],
            }
            for row in rows
        ],
    }


def _name(row: Any, user: User) -> str | None:
    if row["grant_id"] is None:
        return None
    if row["grant_id"] == allowance_id(user.id):
        return ALLOWANCE_NAME
    return row["name"] or str(row["grant_id"])
