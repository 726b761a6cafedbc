"""`allotment migrate`: the database gets the schema of this checkout."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cli.options import AsJson
from cli.output import Output
from cli.session import run, serving, settings_for
from service.database import Database
from service.migrations import current, upgrade
from service.partitions import make_partitions

if TYPE_CHECKING:
    from service.settings import Settings

__all__ = ["EXAMPLES", "command", "migrated"]

EXAMPLES = (
    "allotment migrate                                           the servers of ./.allotment",
    "DATABASE_URL=postgresql://db/allotment allotment migrate    before a new release starts",
    "allotment migrate --json",
)


def command(*, as_json: AsJson = False) -> None:
    """Bring the database to the schema of this version; safe to repeat."""
    run(_migrate(Output(as_json=as_json)))


async def migrated(settings: Settings, output: Output) -> dict[str, Any]:
    """Upgrade the database and make the partitions of the coming months; say what was done."""
    before = await current(settings.asyncpg_dsn)
    with output.step("migrating the database"):
        await upgrade(settings.asyncpg_dsn)
        async with (
            Database(settings.sqlalchemy_url, pool_max=1) as database,
            database.connection() as connection,
        ):
            partitions = await make_partitions(
                connection, now=await connection.fetchval("SELECT now()")
            )
    after = await current(settings.asyncpg_dsn)
    return {"from": before, "to": after, "partitions": partitions}


async def _migrate(output: Output) -> None:
    async with serving(settings_for(quiet=True), output) as settings:
        done = await migrated(settings, output)
    before, after = done["from"], done["to"]
    shown = [f"schema      {before or 'nothing'} → {after}"]
    if before == after:
        shown = [f"schema      {after}, already current"]
    if done["partitions"]:
        shown.append(f"partitions  {', '.join(done['partitions'])}")
    output.result(done, *shown)
