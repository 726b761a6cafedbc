"""`allotment reset`: a user's credits roll over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import AsJson, UserId, user_of
from cli.output import Output, printable
from cli.session import open_session, run
from service.credits import reset_credits

if TYPE_CHECKING:
    from quota.values import User

__all__ = ["EXAMPLES", "command"]

EXAMPLES = (
    "allotment reset user-1",
    "allotment reset user-1 --preserve-overage --json",
)


def command(
    user: UserId,
    *,
    preserve_overage: Annotated[
        bool, typer.Option("--preserve-overage", help="Let what rolls over pay the overage.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Reset a user's credits: each active grant keeps what its rollover bounds allow.

    Overage is dropped, unless it is to be preserved. It is not safe to repeat: each reset is one.
    """
    run(_reset(Output(as_json=as_json), user_of(user), preserve_overage=preserve_overage))


async def _reset(output: Output, user: User, *, preserve_overage: bool) -> None:
    async with open_session(output) as session:
        reset = await reset_credits(
            session.stores(), user, await session.rules(), preserve_overage=preserve_overage
        )
    answer = {"user": user.text, **reset.as_dict()}
    output.result(answer, "\n".join(f"{name:9} {printable(str(answer[name]))}" for name in answer))
