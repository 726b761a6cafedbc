"""What a chaos run shows of records that are logged and were admitted to nobody."""

from __future__ import annotations

from service.database import statement
from worker.deps import Deps


async def test_only_what_nobody_was_told_of_is_shown(deps: Deps) -> None:
    for key in ("told", "untold"):
        await deps.quota.consume("user-1", "event", 3, key=key)
    await deps.drain.run(seconds_max=10)

    async with deps.database.connection() as connection:
        user_id = await connection.fetchval("SELECT id FROM users")
        rows = await connection.fetch(
            statement("cli.chaos", "logged_beyond"), [user_id], ["told"], 10
        )

    assert [(row["key"], row["amount"], row["times"]) for row in rows] == [("untold", 3, 1)]
