"""The instants that PostgreSQL, Redis and the calendar can all take."""

from __future__ import annotations

from datetime import UTC, datetime

from quota.errors import InvalidValueError

__all__ = ["check_instant"]

_FIRST = datetime(1970, 1, 1, tzinfo=UTC)  # instants are counted in milliseconds from here
_LAST_YEAR = 8999  # the periods of an instant must end within the years that dates have


def check_instant(instant: datetime, *, field: str) -> datetime:
    """*instant*, if it is one that everything can count with.

    Raises:
        InvalidValueError: it is too far in the past or in the future.
    """
    if instant >= _FIRST and instant.astimezone(UTC).year <= _LAST_YEAR:
        return instant
    raise InvalidValueError(
        field, instant.isoformat(), f"an instant from 1970 to the year {_LAST_YEAR}"
    )
