"""Redis against PostgreSQL, user by user, once everything is applied."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from quota.period import Calendar, window_at
from quota.values import instant_ms, instant_of, parse_user_id
from service.database import statement

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from quota.balance import Balance
    from quota.client import Quota
    from service.database import Database

__all__ = ["drift"]

_AT_ONCE = 4  # connections that the demo may take for it


async def drift(database: Database, quota: Quota, users: Iterable[str]) -> list[str]:
    """What Redis says otherwise than PostgreSQL, one line each; empty when they agree."""
    places = asyncio.Semaphore(_AT_ONCE)

    async def compare(user: str) -> list[str]:
        async with places:
            return await _compare(database, quota, user)

    found = await asyncio.gather(*map(compare, users))
    return [line for lines in found for line in lines]


async def _compare(database: Database, quota: Quota, user: str) -> list[str]:
    balance = await quota.balance(user)
    user_id = parse_user_id(user).id
    async with database.connection() as connection:
        row = await connection.fetchrow(
            statement("cli.demo", "standing"), user_id, instant_of(balance.at_ms)
        )
        counters = await connection.fetch(statement("service", "load_counters"), [user_id])
    assert row is not None, "who has a balance is in PostgreSQL"
    stored = {counter["feature"]: counter for counter in counters}
    calendar = Calendar(row["timezone"], row["anchor_ms"], row["cycle_months"])
    pairs = [
        ("tier", balance.tier, row["tier"]),
        ("micro-credits", balance.credits_micro, max(0, row["left_micro"] - row["overage_micro"])),
        ("overage", balance.overage_micro, row["overage_micro"]),
        *_limits(balance, stored, calendar),
    ]
    return [
        f"{user} {name}: Redis {cached}, PostgreSQL {kept}"
        for name, cached, kept in pairs
        if cached != kept
    ]


def _limits(
    balance: Balance, stored: Mapping[str, Any], calendar: Calendar
) -> list[tuple[str, int, int]]:
    pairs = []
    for name, state in balance.limits.items():
        feature = name.rpartition("/")[0]
        kept = _used(
            stored.get(feature), state.per, window_at(state.per, balance.at_ms, calendar).start_ms
        )
        pairs.append((f"{name} used", state.used, kept))
    return pairs


def _used(counter: Any, per: str, start_ms: int) -> int:
    if counter is None:
        return 0
    if per == "lifetime":
        return int(counter["lifetime_used"])
    running = instant_ms(counter[f"{per}_start"]) == start_ms
    return int(counter[f"{per}_used"]) if running else 0
