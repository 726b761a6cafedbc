"""Goes through the users that are in Redis, a few at a time, so that all of them are seen in time."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from uuid import UUID

from redis.exceptions import ResponseError

if TYPE_CHECKING:
    from quota.keys import Keys
    from quota.scripts import Client

__all__ = ["next_users", "read_cursor"]

_KEYS_MIN = 10  # of one SCAN
_KEYS_MAX = 1_000  # Redis looks at so many in less than a millisecond
_CURSOR_MAX = 2**64 - 1
_CALLS_MAX = 50  # of one round: what else is in Redis must not make it long


async def read_cursor(redis: Client, keys: Keys) -> int:
    """How far the sweep is; 0, from the beginning, where what says so can not be read."""
    try:
        text = await redis.get(keys.sweep)
    except ResponseError:  # not a string; the next cursor replaces it
        return 0
    cursor = int(text) if text and re.fullmatch(rb"[0-9]{1,20}", text) else 0
    return cursor if cursor <= _CURSOR_MAX else 0


async def next_users(
    redis: Client, keys: Keys, cursor: int, *, users_max: int
) -> tuple[list[UUID], int]:
    """About *users_max* users from *cursor* on, and where to go on; 0: all were seen.

    A user that is there all the time is seen in each sweep, maybe twice; the order is that of SCAN,
    which is as good as random.
    """
    found: dict[UUID, None] = {}
    for _ in range(_CALLS_MAX):
        count = min(max(users_max - len(found), _KEYS_MIN), _KEYS_MAX)
        # A prefix has no character that a pattern would take for more than itself.
        pattern = f"{keys.prefix}:{{s*}}:u:*"
        cursor, names = await redis.scan(cursor, match=pattern, count=count, _type="hash")
        for name in names:
            user_id = _user_of(name)
            if user_id is not None:
                found[user_id] = None
        if not cursor or len(found) >= users_max:
            break
    return list(found), cursor


def _user_of(name: bytes) -> UUID | None:
    try:
        return UUID(hex=name.rpartition(b":")[2].decode())
    except ValueError:  # not a key of ours
        return None
