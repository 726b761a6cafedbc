"""Reads the result of a run from PostgreSQL and Redis, after everything is applied."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from cli.demo.report import Use
from quota.values import parse_user_id
from service.database import statement
from service.metrics import OUTCOMES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from redis.asyncio import Redis

    from cli.demo.ledger import Ledger
    from quota.keys import Keys
    from quota.rules import Rules
    from service.database import Database

__all__ = ["read_tallies", "read_use", "totals"]


async def read_tallies(redis: Redis, keys: Keys) -> Counter[str]:
    """What the admit script counted in all shards: lines, and decisions by outcome."""
    found: Counter[str] = Counter()
    for shard in keys.shards:
        tallies = await redis.hgetall(shard.tallies)  # type: ignore[misc] # redis-py's union
        for name, count in tallies.items():
            word: str = name.decode()
            outcome = "lines" if word == "lines" else OUTCOMES.get(word[1:])
            if outcome is not None and (outcome == "lines" or word[0] != "k"):
                found[outcome] += int(count)
    return found


async def totals(database: Database) -> Mapping[str, int]:
    """Rows applied, records quarantined, users."""
    async with database.connection() as connection:
        row = await connection.fetchrow(statement("cli.demo", "totals"))
    assert row is not None
    return dict(row)


async def read_use(database: Database, ledger: Ledger, rules: Rules) -> list[Use]:
    """What each tier made of each feature."""
    async with database.connection() as connection:
        logged = await connection.fetch(statement("cli.demo", "use_by_tier"))
        tiers = {
            row["id"]: row["tier"]
            for row in await connection.fetch(statement("cli.demo", "tiers_of_users"))
        }
    told: dict[tuple[str, str], Counter[str]] = {}
    for (user, feature, code), count in ledger.outcomes.items():
        tier = tiers.get(parse_user_id(user).id, rules.default_tier)
        told.setdefault((tier, feature), Counter())[code] += count
    rows: dict[tuple[str, str], Any] = {(row["tier"], row["feature"]): row for row in logged}
    return [
        _use(tier, feature, rows.get((tier, feature)), told.get((tier, feature), Counter()))
        for tier, feature in sorted({*rows, *told})
    ]


def _use(tier: str, feature: str, row: Any, outcomes: Counter[str]) -> Use:
    if row is None:
        return Use(tier, feature, 0, 0, outcomes)
    return Use(tier, feature, row["records"], row["micro"], outcomes)
