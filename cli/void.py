"""`allotment void`: a grant ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import AsJson, UserId, user_of
from cli.output import Output, printable
from cli.session import open_session, run
from service.credits import void_grant

if TYPE_CHECKING:
    from quota.values import User

__all__ = ["EXAMPLES", "command"]

EXAMPLES = (
    "allotment void user-1 order-4711",
    "allotment void user-1 0b53eb41-8f3e-4d35-a6ba-3ba1a8a7dc5c --json",
)


def command(
    user: UserId,
    grant: Annotated[str, typer.Argument(help="The grant's id, as `allotment balance` shows it.")],
    *,
    as_json: AsJson = False,
) -> None:
    """End a grant now: what is left of it is gone, what it has paid stays paid. Safe to repeat."""
    run(_void(Output(as_json=as_json), user_of(user), grant))


async def _void(output: Output, user: User, grant: str) -> None:
    async with open_session(output) as session:
        void = await void_grant(session.stores(), user, await session.rules(), grant)
    answer = {"user": user.text, **void.as_dict()}
    output.result(answer, _sentence(answer))


def _sentence(answer: dict[str, Any]) -> str:
    why = f": {answer['note']}" if answer["note"] else ""
    return printable(f"voided: {answer['voided']} credits of {answer['grant']}{why}")
