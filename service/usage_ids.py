"""The id of a usage: made of its key and its instant, so that it is the same whenever the log is read."""

from __future__ import annotations

from uuid import UUID

from quota.values import uuid7_time_ms
from quota.wire import mark_of

__all__ = ["usage_id", "uuid7_from"]


def uuid7_from(mark: bytes, time_ms: int) -> UUID:
    """A UUIDv7 of *time_ms* whose other bits are those of *mark*: the same whenever it is made."""
    digest = int.from_bytes(mark[:10])
    return UUID(int=time_ms << 80 | 7 << 76 | (digest & 0xFFF) << 64 | 2 << 62 | digest >> 18)


def usage_id(user_id: UUID, key: str, at_ms: int) -> UUID | str:
    """The id of the first line of a record that was admitted at *at_ms*; its key, if that is a UUIDv7."""
    if uuid7_time_ms(key) is not None:
        return key
    return uuid7_from(mark_of(user_id, key), at_ms)
