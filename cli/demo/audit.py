"""The closing audit: the ledger of answers against PostgreSQL, in SQL.

Nothing here trusts a counter of the demo. The ledger goes into a temporary table, so that a
million records are compared as quickly as they deserve.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from service.database import statement

if TYPE_CHECKING:
    import asyncpg

    from cli.demo.ledger import Ledger
    from service.database import Database

__all__ = ["Audit", "audit"]


@dataclass(frozen=True, slots=True)
class Audit:
    """What was found; every field but the four credits is 0 when all is well."""

    missing: int  # records that were admitted and are not logged
    altered: int  # records that are logged with another feature, amount or cost
    repeated: int  # records that are logged once more
    strange: int  # records that are logged and that nobody was told of
    answered_twice: int  # keys that were admitted anew
    usage_short: int  # units by which feature_usage is behind, and so on
    usage_beyond: int
    counter_short: int
    counter_beyond: int
    over_admitted: int  # units past a hard limit
    granted: int  # micro-credits, here and below
    burnt: int
    remaining: int
    overage: int
    unbalanced: int  # granted - (burnt + left - overage), user by user
    misburnt: int  # burns against what the callers were told
    misowed: int  # overage against its entries

    @property
    def lost(self) -> int:
        """Records, or units of them, that were admitted and are not counted everywhere."""
        return max(self.missing, self.usage_short, self.counter_short)

    @property
    def double_counted(self) -> int:
        """Records, or units of them, that are counted more often than they were admitted."""
        extra = self.repeated + self.strange + self.answered_twice
        return max(extra, self.usage_beyond, self.counter_beyond)

    @property
    def credits_off(self) -> int:
        """Micro-credits that are not where the rules put them."""
        return self.unbalanced + self.misburnt + self.misowed

    @property
    def sound(self) -> bool:
        """Whether everything was counted once, within limits, and every credit accounted for."""
        return not (
            self.lost
            or self.double_counted
            or self.over_admitted
            or self.altered
            or self.credits_off
        )

    def as_dict(self) -> dict[str, int]:
        """Every field by name."""
        return asdict(self)


async def audit(database: Database, ledger: Ledger) -> Audit:
    """Compare *ledger* with *database*, to which everything has been applied."""
    async with database.connection() as connection, connection.transaction():
        await _bring_ledger(connection, ledger)
        records = await _row(connection, "compare_records")
        units = await _row(connection, "compare_units")
        money = await _row(connection, "compare_credits")
        over = await connection.fetchval(statement("cli.demo", "over_admitted"))
    return Audit(
        **records, **units, **money, over_admitted=over, answered_twice=ledger.answered_twice
    )


async def _bring_ledger(connection: asyncpg.Connection[Any], ledger: Ledger) -> None:
    await connection.execute(statement("cli.demo", "make_ledger"))
    await connection.execute(statement("cli.demo", "make_logged"))
    columns = ("user_id", "key", "line", "feature", "amount", "cost_micro", "verb")
    await connection.copy_records_to_table("demo_ledger", records=ledger.entries, columns=columns)
    unanswered = [(user_id, key, 0, False) for user_id, key in ledger.unanswered]
    await connection.copy_records_to_table(
        "demo_ledger", records=unanswered, columns=("user_id", "key", "line", "certain")
    )
    await connection.execute(statement("cli.demo", "settle_unanswered"))
    await connection.execute("ANALYZE demo_ledger, demo_logged")


async def _row(connection: asyncpg.Connection[Any], name: str) -> dict[str, int]:
    row = await connection.fetchrow(statement("cli.demo", name))
    assert row is not None
    return dict(row)
