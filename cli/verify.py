"""`allotment verify`: whether every figure is what the records of usage and credits come to."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from redis.exceptions import RedisError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cli.options import AsJson, user_of
from cli.output import Output, printable, table
from cli.session import open_session, run
from quota.values import credits_of, instant_ms, instant_text
from service.staleness import drop_stale_users
from service.tiers import stored_rules
from service.users import find_user
from service.verify import Report, Verifier
from service.verify_rollups import verify_rollups

if TYPE_CHECKING:
    from rich.console import RenderableType

    from quota.values import User
    from service.verify import Finding

__all__ = ["EXAMPLES", "command"]

EXAMPLES = (
    "allotment verify",
    "allotment verify --user user-1 --json",
    "allotment verify --fix               repair what can be rebuilt, and list the rest",
)
_DIFFERENT = 1
# Figures in micro-credits, which are shown as credits.
_CREDITS = ("credit_grants.", "credit_entries.", "users.overage", "credits.", "holds.")


def command(
    *,
    fix: Annotated[
        bool, typer.Option("--fix", help="Repair what can be rebuilt, each user as a whole.")
    ] = False,
    user: Annotated[
        str | None, typer.Option(metavar="USER", help="Look at this user alone.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Rebuild every derived figure from the records of usage and credits, and list the differences.

    Counters, windows and totals are counted from usage, refunds and open holds; what is left of
    grants and overage is added up from credit entries; the tier is that of the running subscription; days,
    months and lifetimes are counted anew, and undone unless they are to be repaired. It can be run while
    everything else does.

    Exits with 0 when all figures are right or were repaired, with 1 when some are not.
    """
    report = run(_verify(Output(as_json=as_json), None if user is None else user_of(user), fix=fix))
    if report.remaining:
        raise typer.Exit(_DIFFERENT)


async def _verify(output: Output, user: User | None, *, fix: bool) -> Report:
    async with open_session(output) as session:
        if user is not None:
            async with session.database.session() as transaction:
                await find_user(transaction, user)
        settings = session.settings
        verifier = Verifier(
            session.database,
            await stored_rules(session.database),
            shards=settings.shards,
            grace_ms=settings.late_grace * 1000,
            fix=fix,
        )
        with _progress() as bar:
            task = bar.add_task("comparing users", total=None)
            report = await verifier.run(
                user_id=None if user is None else user.id,
                tell=lambda done, total: bar.update(task, completed=done, total=total),
            )
            await verify_rollups(
                session.database,
                report,
                fix=fix,
                user_id=None if user is None else user.id,
                tell=lambda done, total: bar.update(
                    task, description="counting users anew", completed=done, total=total
                ),
            )
        if report.mended:
            try:
                await drop_stale_users(session.database, session.redis, session.keys)
            except RedisError as error:  # repaired it is, and the worker finds the note of it
                output.note(f"users will be loaded again once Redis answers: {error}")
    output.result(_answer(report), *_shown(report, fix=fix))
    return report


def _progress() -> Progress:
    """A bar on stderr, where that is a terminal."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=console, transient=True, disable=not console.is_terminal,
    )  # fmt: skip


def _answer(report: Report) -> dict[str, Any]:
    return {
        "users": report.users,
        "found": report.found,
        "repaired": report.mended,
        "remaining": report.remaining,
        "figures": dict(sorted(report.by_figure.items())),
        "differences": [_difference(one) for one in report.findings],
    }


def _difference(found: Finding) -> dict[str, Any]:
    one = found.difference
    return {
        "user": found.user,
        "figure": one.figure,
        "of": one.of,
        "stored": _value(one.figure, one.stored),
        "expected": _value(one.figure, one.expected),
        "repairable": one.mendable,
        "repaired": found.mended,
    }


def _value(figure: str, value: int | datetime | str | None) -> int | str | None:
    if isinstance(value, datetime):
        return instant_text(instant_ms(value))
    if isinstance(value, int) and figure.startswith(_CREDITS):
        return format(credits_of(value), "f")
    return value


def _shown(report: Report, *, fix: bool) -> list[RenderableType]:
    if not report.found:
        return [f"users: {report.users:,}; every figure is what the records come to"]
    made = table("user", "figure", "of", "stored", "expected", "", right=("stored", "expected"))
    for found in report.findings:
        one = _difference(found)
        state = (
            "repaired" if found.mended else "" if found.difference.mendable else "not repairable"
        )
        cells = (one["user"], one["figure"], one["of"] or "", one["stored"], one["expected"], state)
        made.add_row(*(printable("none" if cell is None else str(cell)) for cell in cells))
    more = report.found - len(report.findings)
    beyond = [f"and {more:,} more"] if more else []
    ended = f", repaired: {report.mended:,}" if fix else ""
    return [made, *beyond, f"users: {report.users:,}, differences: {report.found:,}{ended}"]
