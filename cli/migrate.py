"""`allotment migrate`: the database gets the schema of this checkout."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import asyncpg
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from cli.options import AsJson
from cli.output import Output, printable, table
from cli.session import run, serving, settings_for
from quota.errors import InvalidValueError
from service.database import Database
from service.legacy import compare_legacy, legacy_brought_over
from service.migrations import current, is_ours, printed, require_current, upgrade
from service.partitions import make_partitions
from service.schema_check import require_room

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from service.legacy import Compared, Legacy
    from service.migrations import Tell
    from service.settings import Settings

__all__ = ["EXAMPLES", "command", "migrated"]

EXAMPLES = (
    "allotment migrate                                           the servers of ./.allotment",
    "DATABASE_URL=postgresql://db/allotment allotment migrate    before a new release starts",
    "allotment migrate --sql > migrate.sql                       for those who paste it into a console",
    "allotment migrate --sql --from nothing                      the same, without a database",
    "allotment migrate --verify                                  after: legacy rows and sums compared",
    "allotment migrate --json",
)
_MISMATCH = 1
_NOTHING = "nothing"
_TOLD_SHARE = 0.1  # where there is no terminal, of legacy rows one line is told for each


def command(
    *,
    sql: Annotated[
        bool, typer.Option("--sql", help="Print the SQL instead of running it.")
    ] = False,
    since: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="REVISION",
            help="With --sql: what the database is at, or `nothing`, instead of asking it.",
        ),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare legacy rows with what was brought over.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Bring the database to the schema of this version; safe to repeat.

    Rows of a legacy `user_feature_usage` or `feature_usage` are brought over. Those that are no use
    of anything stay in quarantine, with the reason; the legacy tables move to the schema
    allotment_legacy, for the way back.

    With --verify nothing is migrated; exits with 1 when rows or sums differ, or the schema is another.
    """
    if (sql and verify) or (since is not None and not sql):
        raise InvalidValueError(
            "from" if since else "sql", since or "--verify", "--sql alone, or --sql --from REVISION"
        )
    output = Output(as_json=as_json)
    if sql:
        run(_print(output, since))
    elif verify:
        if not run(_verify(output)):
            raise typer.Exit(_MISMATCH)
    else:
        run(_migrate(output))


async def migrated(settings: Settings, output: Output) -> dict[str, Any]:
    """Upgrade the database and make the partitions of the coming months; say what was done."""
    before = await current(settings.asyncpg_dsn)
    await require_room(settings.asyncpg_dsn)
    with _progress(output) as tell:
        await upgrade(settings.asyncpg_dsn, tell=tell)
    async with (
        Database(settings.sqlalchemy_url, pool_max=1) as database,
        database.connection() as connection,
    ):
        partitions = await make_partitions(
            connection, now=await connection.fetchval("SELECT now()")
        )
        legacy = await legacy_brought_over(connection)
    after = await current(settings.asyncpg_dsn)
    done: dict[str, Any] = {"from": before, "to": after, "partitions": partitions}
    return done if legacy is None else {**done, "legacy": asdict(legacy)}


@contextmanager
def _progress(output: Output) -> Iterator[Tell]:
    """What tells how far legacy rows are: a bar on stderr where that is a terminal, else lines."""
    console = Console(stderr=True)
    told: dict[str, float] = {}
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[rows]:,}"), TimeRemainingColumn(),
        console=console, transient=True, disable=not console.is_terminal or output.as_json,
    ) as bar:  # fmt: skip
        task = bar.add_task("migrating the database", total=None, rows=0)

        def tell(step: str, rows: int, share: float) -> None:
            bar.update(task, description=step, completed=share, total=1, rows=rows)
            if bar.disable and share >= told.get(step, 0.0) + _TOLD_SHARE:
                told[step] = share
                output.note(f"{step}: {rows:,} ({share:.0%})")

        yield tell


async def _migrate(output: Output) -> None:
    async with serving(settings_for(quiet=True), output) as settings:
        done = await migrated(settings, output)
        connection = await asyncpg.connect(settings.asyncpg_dsn)
        try:
            legacy = await legacy_brought_over(connection)
        finally:
            await connection.close()
    before, after = done["from"], done["to"]
    shown: list[RenderableType] = [f"schema      {before or _NOTHING} → {after}"]
    if before == after:
        shown = [f"schema      {after}, already current"]
    if done["partitions"]:
        shown.append(f"partitions  {', '.join(done['partitions'])}")
    output.result(done, *shown, *_legacy_shown(legacy))


def _legacy_shown(legacy: Legacy | None) -> list[RenderableType]:
    """What was brought over, and what was not, and why."""
    if legacy is None:
        return []
    shown: list[RenderableType] = [
        f"legacy      {one.name}: {one.brought:,} of {one.rows:,} rows, {one.units:,} units"
        for one in legacy.sources
    ]
    shown.append(f"            users made, because they were not known: {legacy.users_made:,}")
    if legacy.rejects:
        made = table("legacy rows kept aside", "of", "why", right=("legacy rows kept aside",))
        for one in legacy.rejects:
            made.add_row(f"{one.rows:,}", one.source, printable(one.reason))
        shown += [made, "`allotment quarantine ls` and `show ID` list them"]
    return shown


async def _print(output: Output, since: str | None) -> None:
    if since is None:
        async with serving(settings_for(quiet=True), output) as settings:
            since = await current(settings.asyncpg_dsn)
    if since not in (None, _NOTHING) and not await is_ours(since):
        raise InvalidValueError("from", since, "a revision of this version, or `nothing`")
    text = await printed(since=None if since == _NOTHING else since)
    if output.as_json:
        output.result({"from": None if since == _NOTHING else since, "sql": text})
    else:
        sys.stdout.write(text)


async def _verify(output: Output) -> bool:
    async with serving(settings_for(quiet=True), output) as settings:
        await require_current(settings.asyncpg_dsn)
        connection = await asyncpg.connect(settings.asyncpg_dsn)
        try:
            with output.step("comparing legacy rows"):
                compared = await compare_legacy(connection)
        finally:
            await connection.close()
    if compared is None:
        output.result({"equal": True, "legacy": None}, "there are no legacy rows to compare")
        return True
    answer = {
        "equal": compared.equal,
        "read": [asdict(one) for one in compared.read],
        "now": [asdict(one) for one in compared.now],
        "unequal": [{**asdict(one), "user_id": str(one.user_id)} for one in compared.unequal],
        "total": compared.total,
        "deleted": compared.deleted,
        "users_made": compared.users_made,
    }
    output.result(answer, *_compared_shown(compared))
    return compared.equal


def _compared_shown(compared: Compared) -> list[RenderableType]:
    figures = ("rows", "brought", "rejected", "units")
    made = table("legacy relation", "", *figures, right=figures)
    for read, now in zip(compared.read, compared.now, strict=True):
        for when, one in (("as read", read), ("now", now)):
            made.add_row(one.name, when, *(f"{getattr(one, name):,}" for name in figures))
    shown: list[RenderableType] = [made]
    if compared.unequal:
        columns = ("legacy", "brought", "counted", "lifetime")
        listed = table("user", "feature", *columns, right=columns)
        for different in compared.unequal:
            cells = (getattr(different, name) for name in columns)
            listed.add_row(
                str(different.user_id), different.feature,
                *("none" if cell is None else f"{cell:,}" for cell in cells),
            )  # fmt: skip
        shown += [listed, f"users and features that differ: {compared.total:,}"]
    for name, rows in compared.deleted.items():
        shown.append(f"{name}: {rows:,} rows were deleted since")
    shown.append(f"users made, because they were not known: {compared.users_made:,}")
    shown.append("every row and unit is there" if compared.equal else "rows or units differ")
    return shown
