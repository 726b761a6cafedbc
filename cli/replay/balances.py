"""Whether the credits of every user balance: granted = burnt + left + held + expired + voided - overage (DESIGN 5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quota.values import credits_of, instant_ms, parse_user_id
from service.database import statement

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from cli.replay.format import Scenario
    from cli.replay.stage import World

__all__ = ["Imbalance", "imbalances"]

_SPENT = ("burnt", "left", "held", "expired", "voided")
_PARTS = ("granted", *_SPENT, "overage")


@dataclass(frozen=True, slots=True)
class Imbalance:
    """A user whose credits do not add up; *micro* has each part by its name."""

    user: str
    micro: Mapping[str, int]

    def __str__(self) -> str:
        amounts = self._credits()
        parts = " + ".join(f"{name} {amounts[name]}" for name in _SPENT)
        return (
            f"credits of {self.user}: granted {amounts['granted']}, "
            f"but {parts} - overage {amounts['overage']}"
        )

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {"user": self.user, **self._credits()}

    def _credits(self) -> dict[str, str]:
        return {name: format(credits_of(micro), "f") for name, micro in self.micro.items()}


async def imbalances(world: World, scenario: Scenario, *, at: datetime) -> list[Imbalance]:
    """The users whose credits do not balance at *at*, after everything was applied."""
    await world.settle(instant_ms(at))
    found: list[Imbalance] = []
    async with world.deps.database.connection() as connection:
        for name in scenario.users:
            row = await connection.fetchrow(
                statement("service", "credits"), [parse_user_id(name).id], at
            )
            assert row is not None, "it has a row for each user that is asked for"
            spent = sum(row[part] for part in _SPENT)
            if row["granted"] != spent - row["overage"]:
                found.append(Imbalance(name, {part: row[part] for part in _PARTS}))
    return found
