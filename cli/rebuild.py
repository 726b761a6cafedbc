"""`allotment rebuild`: days, months and lifetimes anew, from the log of usage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cli.options import AsJson, user_of
from cli.output import Output
from cli.session import open_session, run
from service.rebuild import rebuild
from service.users import find_user

if TYPE_CHECKING:
    from quota.values import User

__all__ = ["EXAMPLES", "command"]

EXAMPLES = (
    "allotment rebuild",
    "allotment rebuild --user user-1 --json",
)


def command(
    *,
    user: Annotated[
        str | None, typer.Option(metavar="USER", help="Count this user alone anew.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Count what users did by day, month and lifetime anew, from the log of usage and its refunds.

    It can be run while everything else does, and as often as you like. It is needed after a database was
    restored from a dump, or rows of the log were changed by hand; else `allotment verify --fix` does.
    """
    run(_rebuild(Output(as_json=as_json), None if user is None else user_of(user)))


async def _rebuild(output: Output, user: User | None) -> None:
    async with open_session(output) as session:
        if user is not None:
            async with session.database.session() as transaction:
                await find_user(transaction, user)
        console = Console(stderr=True)
        with Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            console=console, transient=True, disable=not console.is_terminal,
        ) as bar:  # fmt: skip
            task = bar.add_task("counting users anew", total=None)
            users = await rebuild(
                session.database,
                user_id=None if user is None else user.id,
                tell=lambda done, total: bar.update(task, completed=done, total=total),
            )
    output.result(
        {"users": users}, f"users: {users:,}; days, months and lifetimes are counted anew"
    )
