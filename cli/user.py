"""`allotment user set`: a user's tier and calendar."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import AsJson, Command, UserId, examples, user_of
from cli.output import Output, printable
from cli.session import open_session, run
from quota.period import parse_cycle_months, parse_timezone
from quota.values import instant_ms, instant_text, parse_instant
from service.moves import move_user

if TYPE_CHECKING:
    from models import User as UserRow

__all__ = ["app"]

app = typer.Typer(add_completion=False, no_args_is_help=False)


@app.callback(epilog=examples("allotment user set user-1 --tier pro"))
def user() -> None:
    """Make or change a user."""


@app.command(
    "set",
    cls=Command,
    epilog=examples(
        "allotment user set user-1 --tier pro",
        "allotment user set user-1 --timezone Europe/Berlin",
        "allotment user set user-1 --anchor 2024-01-31T10:00:00Z --cycle-months 12",
    ),
)
def set_user(
    user: UserId,
    *,
    tier: Annotated[str | None, typer.Option(help="One of the tiers in force.")] = None,
    timezone: Annotated[
        str | None, typer.Option(help="Where the user's days begin, such as Europe/Berlin.")
    ] = None,
    anchor: Annotated[
        str | None, typer.Option(metavar="INSTANT", help="When the first billing cycle began.")
    ] = None,
    cycle_months: Annotated[int | None, typer.Option(help="Months of a billing cycle.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a user, or change one: what is not given stays as it is.

    A change of tier changes the limits at once; what was used in the running periods stays used,
    and so does what was used of the tier's credits.
    """
    changes = {
        "tier": tier,
        "timezone": None if timezone is None else parse_timezone(timezone),
        "anchor": None if anchor is None else parse_instant(anchor, field="anchor"),
        "cycle_months": None if cycle_months is None else parse_cycle_months(cycle_months),
    }
    run(_set_user(Output(as_json=as_json), user_of(user), changes))


async def _set_user(output: Output, user: Any, changes: dict[str, Any]) -> None:
    async with open_session(output) as session:
        row = await move_user(session.stores(), user, await session.rules(), **changes)
    answer = {"user": user.text, **_answer(row)}
    output.result(answer, "\n".join(f"{name:13} {printable(str(answer[name]))}" for name in answer))


def _answer(row: UserRow) -> dict[str, Any]:
    return {
        "id": str(row.id),
        "tier": row.tier,
        "timezone": row.timezone,
        "anchor": instant_text(instant_ms(row.anchor)),
        "cycle_months": row.cycle_months,
        "status": row.status,
    }
