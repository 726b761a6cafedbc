"""`allotment check-schema`: whether the database has the schema of this checkout, and what is in the way."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from cli.options import AsJson
from cli.output import Output, printable, table
from cli.session import run, serving, settings_for
from service.schema_check import CONFLICT, LEGACY, MISSING, PRESENT, check_schema

if TYPE_CHECKING:
    from rich.console import RenderableType

    from service.schema_check import Checked

__all__ = ["EXAMPLES", "command"]

EXAMPLES = (
    "allotment check-schema                                           before and after `allotment migrate`",
    "DATABASE_URL=postgresql://db/legacy allotment check-schema       what would be brought over",
    "allotment check-schema --json",
)
_NOT_READY = 1


def command(*, as_json: AsJson = False) -> None:
    """List what is there, what is missing, and what is in the way; change nothing.

    A `user_feature_usage` table, or a `feature_usage` that is not ours, is legacy: `allotment migrate` brings
    its rows over.

    Exits with 0 when this version can work with the database, with 1 when not.
    """
    checked = run(_check(Output(as_json=as_json)))
    if not checked.ready:
        raise typer.Exit(_NOT_READY)


async def _check(output: Output) -> Checked:
    async with serving(settings_for(quiet=True), output) as settings:
        checked = await check_schema(settings.asyncpg_dsn)
    answer = {
        "ready": checked.ready,
        "revision": checked.revision,
        "needed": checked.needed,
        **{
            state: [asdict(one) for one in checked.of(state)]
            for state in (PRESENT, MISSING, CONFLICT, LEGACY)
        },
    }
    output.result(answer, *_shown(checked))
    return checked


def _shown(checked: Checked) -> list[RenderableType]:
    shown: list[RenderableType] = [
        f"schema      {checked.revision or 'nothing'}, this version needs {checked.needed}",
        f"present     {sum(one.kind == 'table' for one in checked.of(PRESENT))} tables",
    ]
    others = checked.of(MISSING, CONFLICT, LEGACY)
    if others:
        made = table("state", "what", "name", "")
        for one in others:
            made.add_row(one.state, one.kind, printable(one.name), printable(one.note))
        shown.append(made)
    shown.append(_advice(checked))
    return shown


def _advice(checked: Checked) -> str:
    """What to do now."""
    if checked.ready:
        return "ready"
    if checked.of(CONFLICT):
        return "not ready: settle each conflict first"
    if checked.revision == checked.needed:
        return "not ready: restore what is missing (`allotment migrate --sql --from nothing` has its SQL)"
    return "not ready: run `allotment migrate`"
