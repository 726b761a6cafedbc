"""`allotment user`: a user's tier, how long it lasts, and calendar."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import AsJson, Command, UserId, examples, user_of
from cli.output import Output, printable, table
from cli.session import open_session, run
from cli.subscription import subscription_line
from quota.period import parse_anchor, parse_cycle_months, parse_timezone
from quota.values import instant_ms, instant_text
from service.moves import move_user
from service.stretches import parse_revenue, parse_until
from service.subscribed import subscribed_of
from service.subscriptions import stretches_of
from service.users import find_user

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from rich.table import Table

    from cli.session import Session
    from models import User as UserRow
    from quota.values import User
    from service.subscriptions import Stretch

__all__ = ["app"]

app = typer.Typer(add_completion=False, no_args_is_help=False)


@app.callback(epilog=examples("allotment user set user-1 --tier pro", "allotment user show user-1"))
def user() -> None:
    """Make, change or show a user."""


@app.command(
    "set",
    cls=Command,
    epilog=examples(
        "allotment user set user-1 --tier pro",
        "allotment user set user-1 --tier pro --until 2026-12-31 --revenue 9.99",
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
    until: Annotated[
        str | None,
        typer.Option(
            metavar="DAY",
            help="The last day on the tier in the user's calendar, or an instant, or never; "
            "then the default tier follows.",
        ),
    ] = None,
    revenue: Annotated[
        str | None, typer.Option(metavar="MONEY", help="What the time up to there brings in.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a user, or change one: what is not given stays as it is.

    A change of tier changes the limits at once; what was used in the running periods stays used,
    and so does what was used of the tier's credits.

    The same tier with a later --until is a renewal, and its --revenue is added. The same command
    twice changes nothing twice.
    """
    changes = {
        "tier": tier,
        "timezone": None if timezone is None else parse_timezone(timezone),
        "anchor": None if anchor is None else parse_anchor(anchor),
        "cycle_months": None if cycle_months is None else parse_cycle_months(cycle_months),
        "until": None if until is None else parse_until(until),
        "revenue": None if revenue is None else parse_revenue(revenue),
    }
    run(_set_user(Output(as_json=as_json), user_of(user), changes))


@app.command(
    "show",
    cls=Command,
    epilog=examples("allotment user show user-1", "allotment user show user-1 --json"),
)
def show_user(user: UserId, *, as_json: AsJson = False) -> None:
    """Show a user's tier, calendar, and every time on a tier, with its days and what it brought in."""
    run(_show_user(Output(as_json=as_json), user_of(user)))


async def _set_user(output: Output, user: User, changes: dict[str, Any]) -> None:
    async with open_session(output) as session:
        row = await move_user(session.stores(), user, await session.rules(), **changes)
        stretches, at = await _stretches(session, row)
    answer = {"user": user.text, **_answer(row)}
    running = stretches[-1].as_dict(timezone=row.timezone, at=at)
    output.result(
        {**answer, "subscription": running}, _lines({**answer, **subscription_line(running)})
    )


async def _show_user(output: Output, user: User) -> None:
    async with open_session(output) as session:
        async with session.database.session() as transaction:
            row = await find_user(transaction, user)
        stretches, at = await _stretches(session, row)
        async with session.database.connection() as connection:
            history = (await subscribed_of(connection, [row.id], at=at))[row.id].as_dict()
    answer = {"user": user.text, **_answer(row)}
    told = [one.as_dict(timezone=row.timezone, at=at) for one in stretches]
    output.result(
        {**answer, "subscription": told[-1], **history, "history": told},
        _lines({**answer, **subscription_line(told[-1]), **_spaced(history)}) + "\n",
        _history_table(told),
    )


async def _stretches(session: Session, row: UserRow) -> tuple[Sequence[Stretch], datetime]:
    async with session.database.session() as transaction:
        return await stretches_of(transaction, row), await session.now()


def _lines(answer: dict[str, Any]) -> str:
    width = max(len(name) for name in answer) + 1
    return "\n".join(f"{name:{width}} {printable(str(answer[name]))}" for name in answer)


def _spaced(history: dict[str, Any]) -> dict[str, Any]:
    return {name.replace("_", " "): value for name, value in history.items()}


def _history_table(told: list[dict[str, Any]]) -> Table:
    made = table("tier", "status", "from", "to", "days", "revenue", right=("days", "revenue"))
    for one in reversed(told):
        ends = one["ended_at"] or one["ends_at"] or "–"
        made.add_row(
            one["tier"], one["status"], one["started_at"], ends, str(one["day"]), one["revenue"]
        )
    return made


def _answer(row: UserRow) -> dict[str, Any]:
    return {
        "id": str(row.id),
        "tier": row.tier,
        "timezone": row.timezone,
        "anchor": instant_text(instant_ms(row.anchor)),
        "cycle_months": row.cycle_months,
        "status": row.status,
    }
