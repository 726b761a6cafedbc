"""The users of the day: tiers, time zones, credits, and how busy each is."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import accumulate
from random import Random
from typing import TYPE_CHECKING, NamedTuple
from uuid import uuid4

from models import CreditGrant, User
from quota.values import MICRO, parse_user_id

if TYPE_CHECKING:
    from service.database import Database

__all__ = ["Person", "busyness", "move_in", "people"]

_TIERS = ("free", "plus", "pro", "enterprise")
_SHARES = (70, 22, 7, 1)
_ZONES = (
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "America/Sao_Paulo",
    "Asia/Kolkata",
    "Australia/Lord_Howe",
)
_STRANGERS = 10  # one user in so many is new: made by the first record, on the default tier
_ZIPF = 0.9  # a few users make most of the usage
_ROWS_AT_ONCE = 5_000

# Of each tier: kind, credits, priority, and days until they expire.
_GRANTS: dict[str, list[tuple[str, int, int, int | None]]] = {
    "free": [("promo", 10, 1, 30)],
    "plus": [("promo", 10, 1, 14), ("granted", 100, 2, 30)],
    "pro": [("granted", 200, 1, 30), ("purchased", 1_000, 2, None)],
    "enterprise": [("purchased", 20, 1, None)],  # soon burnt: the tier may overdraw
}


class Person(NamedTuple):
    """A user; *known* before the day begins, or not."""

    name: str
    tier: str
    zone: str
    known: bool


def people(count: int, random: Random) -> list[Person]:
    """*count* users, the busiest first; of the first four each has a tier of its own."""
    tiers = [*_TIERS, *random.choices(_TIERS, _SHARES, k=max(0, count - len(_TIERS)))]
    return [
        Person(
            f"user-{number:06}",
            tier,
            random.choice(_ZONES),
            tier != "free" or random.randrange(_STRANGERS) > 0,
        )
        for number, tier in enumerate(tiers[:count])
    ]


def busyness(count: int) -> list[float]:
    """Cumulative weights of users by rank, as Zipf found them for words."""
    return list(accumulate(1 / (rank + 1) ** _ZIPF for rank in range(count)))


async def move_in(database: Database, everybody: list[Person]) -> None:
    """Write the users that are known, and their grants; nobody is in Redis yet."""
    now = datetime.now(UTC)
    known = [person for person in everybody if person.known]
    for start in range(0, len(known), _ROWS_AT_ONCE):
        async with database.session() as session:
            for person in known[start : start + _ROWS_AT_ONCE]:
                user = parse_user_id(person.name)
                session.add(
                    User(
                        id=user.id,
                        external_id=user.external_id,
                        tier=person.tier,
                        timezone=person.zone,
                        anchor=now,
                        created_at=now,
                    )
                )
                session.add_all(_grants(person, now))


def _grants(person: Person, now: datetime) -> list[CreditGrant]:
    return [
        CreditGrant(
            user_id=parse_user_id(person.name).id,
            id=uuid4(),
            amount_micro=amount * MICRO,
            left_micro=amount * MICRO,
            priority=priority,
            kind=kind,
            effective_at=now - timedelta(seconds=1),
            expires_at=None if days is None else now + timedelta(days=days),
            created_at=now,
        )
        for kind, amount, priority, days in _GRANTS[person.tier]
    ]
