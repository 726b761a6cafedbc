"""`allotment adoption`: who has taken to a feature."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import AsJson
from cli.output import Output, printable, table
from cli.session import open_session, run
from quota.values import parse_feature
from service.adoption import DAYS_MAX, adoption, adoption_of
from service.bounds import check_number

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.table import Table

    from service.adoption import Adoption

__all__ = ["EXAMPLES", "command"]

EXAMPLES = (
    "allotment adoption",
    "allotment adoption calendar_follow_event --days 7",
    "allotment adoption calendar_follow_event --json",
)


def command(
    feature: Annotated[
        str | None, typer.Argument(help="One feature, by tier; else every one.", show_default=False)
    ] = None,
    *,
    days: Annotated[int, typer.Option(help="How many days are lately.")] = 30,
    as_json: AsJson = False,
) -> None:
    """Show how many users have used each feature, ever and lately, and since when.

    Days are whole ones of UTC, today and so many before it. A share is of all users, or of those who are on a
    tier now. Units are net of refunds.
    """
    check_number(days, field="days", most=DAYS_MAX)
    output = Output(as_json=as_json)
    run(_all(output, days) if feature is None else _one(output, parse_feature(feature), days))


async def _all(output: Output, days: int) -> None:
    async with open_session(output) as session, session.database.connection() as connection:
        found = await adoption(connection, days=days)
    shown = _table("feature", ((one.feature, one) for one in found), days)
    answer = {"days": days, "features": [one.as_dict() for one in found]}
    output.result(answer, shown if found else "nothing was used yet")


async def _one(output: Output, feature: str, days: int) -> None:
    async with open_session(output) as session, session.database.connection() as connection:
        whole, by_tier = await adoption_of(connection, feature, days=days)
    tiers = {tier: one.as_dict() for tier, one in by_tier.items()}
    for one in tiers.values():
        del one["feature"], one["first_used_on"], one["recent_units"]
    told = whole.as_dict()
    output.result(
        {"days": days, **told, "tiers": tiers},
        f"feature     {feature}\nfirst used  {told['first_used_on'] or 'never'}\n",
        _table("tier", [*by_tier.items(), ("all", whole)], days),
    )


def _table(of: str, rows: Iterable[tuple[str, Adoption]], days: int) -> Table:
    lately = f"in {days} days"
    columns = {
        of: "feature",
        "users": "users",
        lately: "recent_users",
        "share": "share",
        "units": "units",
        f"units {lately}": "recent_units",
        "first used": "first_used_on",
        "last used": "last_used_at",
    }
    if of == "tier":
        del columns[f"units {lately}"], columns["first used"]
    made = table(*columns, right=("users", lately, "share", "units", f"units {lately}"))
    for name, one in rows:
        told = {**one.as_dict(), "feature": printable(name), "share": f"{one.share:.1%}"}
        made.add_row(*(_cell(told[field]) for field in columns.values()))
    return made


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else str(value)
