"""Who has taken to a feature (seed 000: adoption of new or experimental features; seed 002: by tier).

It is told from `feature_usage`, a row for each user and feature, and from the rollup by day, not from the log of usage.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, timedelta
from typing import TYPE_CHECKING, Any

from quota.values import instant_ms, instant_text
from service.bounds import check_number
from service.database import statement

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import date, datetime

    import asyncpg

__all__ = ["DAYS_MAX", "Adoption", "adoption", "adoption_of"]

DAYS_MAX = 36_500  # a hundred years: longer than anything was used


@dataclass(frozen=True, slots=True)
class Adoption:
    """Users who used a feature: ever, and within the last days; of everyone there is.

    The last N days begin with the UTC day in which the instant N days ago lies. *units* are net of refunds,
    *recent_units* those of the last days, as new as the last fold; None of a tier. Who has refunded all is no user, and
    who has refunded all of the last days no recent one. *first_used_on* is a UTC day, None of a tier and where no
    record is that old; *last_used_at* is of any use, also of one that was refunded.
    """

    feature: str
    users: int
    recent_users: int
    everyone: int
    units: int
    recent_units: int | None
    first_used_on: date | None
    last_used_at: datetime | None

    @property
    def share(self) -> float:
        """The part of all users that ever used it, from 0 to 1."""
        return self.users / self.everyone if self.everyone else 0.0

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {
            "feature": self.feature,
            "users": self.users,
            "recent_users": self.recent_users,
            "share": round(self.share, 4),
            "units": self.units,
            "recent_units": self.recent_units,
            "first_used_on": None if self.first_used_on is None else self.first_used_on.isoformat(),
            "last_used_at": _text(self.last_used_at),
        }


async def adoption(
    connection: asyncpg.Connection[Any], *, days: int, at: datetime | None = None
) -> list[Adoption]:
    """Every feature that was ever used, the one with the most users first; *recent_users* of *days* up to *at*.

    Raises:
        InvalidValueError: *days* are not from 1 to `DAYS_MAX`.
    """
    since = await _since(connection, days, at)
    everyone: int = await connection.fetchval("SELECT count(*) FROM users")
    rows = await connection.fetch(statement("service", "adoption"), since)
    return [
        Adoption(
            row["feature"],
            users=row["users"],
            recent_users=row["recent_users"],
            everyone=everyone,
            units=int(row["units"]),
            recent_units=int(row["recent_units"]),
            first_used_on=row["first_used_on"],
            last_used_at=row["last_used_at"],
        )
        for row in rows
    ]


async def adoption_of(
    connection: asyncpg.Connection[Any], feature: str, *, days: int, at: datetime | None = None
) -> tuple[Adoption, Mapping[str, Adoption]]:
    """One feature, among everyone and among the users of each tier as they are on it now.

    Raises:
        InvalidValueError: *days* are not from 1 to `DAYS_MAX`.
    """
    since = await _since(connection, days, at)
    rows = await connection.fetch(statement("service", "adoption_by_tier"), feature, since)
    by_tier = {row["tier"]: _of_tier(feature, row) for row in rows}
    tiers = by_tier.values()
    whole = Adoption(
        feature,
        users=sum(one.users for one in tiers),
        recent_users=sum(one.recent_users for one in tiers),
        everyone=sum(one.everyone for one in tiers),
        units=sum(one.units for one in tiers),
        recent_units=next((int(row["recent_units"]) for row in rows), 0),
        first_used_on=next((row["first_used_on"] for row in rows), None),
        last_used_at=max((one.last_used_at for one in tiers if one.last_used_at), default=None),
    )
    return whole, by_tier


def _of_tier(feature: str, row: Any) -> Adoption:
    return Adoption(
        feature,
        users=row["users"],
        recent_users=row["recent_users"],
        everyone=row["everyone"],
        units=int(row["units"]),
        recent_units=None,  # tiers change, and days are not summed up by them
        first_used_on=None,
        last_used_at=row["last_used_at"],
    )


async def _since(connection: asyncpg.Connection[Any], days: int, at: datetime | None) -> datetime:
    check_number(days, field="days", most=DAYS_MAX)
    now: datetime = at or await connection.fetchval("SELECT now()")
    today = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return today - timedelta(days=days)


def _text(instant: datetime | None) -> str | None:
    return None if instant is None else instant_text(instant_ms(instant))
