"""`allotment grant`: a user gets credits."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import AsJson, UserId, user_of
from cli.output import Output, printable
from cli.session import open_session, run
from quota.burndown import KINDS
from quota.period import RENEWALS
from quota.values import (
    credits_of,
    instant_ms,
    instant_text,
    parse_credits,
    parse_given,
    parse_instant,
    parse_label,
)
from service.giving import give_grant

if TYPE_CHECKING:
    from models import CreditGrant

__all__ = ["EXAMPLES", "command"]

EXAMPLES = (
    "allotment grant user-1 20",
    "allotment grant user-1 12.5 --id order-4711 --kind purchased    a repeat gives nothing more",
    "allotment grant user-1 5 --kind promo --expires-at 2030-12-31T23:59:59Z",
    "allotment grant user-1 100 --every month --max-rollover 50",
)


def command(
    user: UserId,
    amount: Annotated[str, typer.Argument(help="Credits, with up to 6 places.")],
    *,
    name: Annotated[
        str | None, typer.Option("--id", help="A name: a repeat with it gives nothing more.")
    ] = None,
    kind: Annotated[str, typer.Option(help=f"One of {', '.join(KINDS)}.")] = "granted",
    priority: Annotated[int, typer.Option(help="Lower burns first.")] = 1,
    effective_at: Annotated[
        str | None, typer.Option(metavar="INSTANT", help="When it begins; now, if not given.")
    ] = None,
    expires_at: Annotated[
        str | None, typer.Option(metavar="INSTANT", help="When it ends; never, if not given.")
    ] = None,
    every: Annotated[
        str | None,
        typer.Option(
            help=f"Set back to the amount each {', '.join(RENEWALS[:-1])} or {RENEWALS[-1]}."
        ),
    ] = None,
    min_rollover: Annotated[
        str, typer.Option(metavar="CREDITS", help="What a reset makes of it, at least.")
    ] = "0",
    max_rollover: Annotated[
        str, typer.Option(metavar="CREDITS", help="What a reset leaves of it, at most.")
    ] = "0",
    as_json: AsJson = False,
) -> None:
    """Give a user credits; the user is made, if there is none yet.

    A grant that begins in the past pays nothing that was used before it was given.
    """
    asked = {
        "user": user_of(user),
        "amount_micro": parse_given(amount),
        "every": every,
        "min_rollover_micro": parse_credits(min_rollover, field="min_rollover"),
        "max_rollover_micro": parse_credits(max_rollover, field="max_rollover"),
        "name": parse_label(name, field="id"),
        "kind": kind,
        "priority": priority,
        "effective_at": _instant(effective_at, field="effective_at"),
        "expires_at": _instant(expires_at, field="expires_at"),
    }
    run(_grant(Output(as_json=as_json), asked))


async def _grant(output: Output, asked: dict[str, Any]) -> None:
    user = asked.pop("user")
    async with open_session(output) as session:
        rules, now = await session.rules(), await session.now()
        grant = await give_grant(session.stores(), user, rules, **asked)
    answer = {"user": user.text, **_answer(grant), "repeated": grant.created_at < now}
    output.result(answer, _sentence(answer))


def _answer(grant: CreditGrant) -> dict[str, Any]:
    return {
        "id": grant.name or str(grant.id),
        "amount": format(credits_of(grant.amount_micro), "f"),
        "left": format(credits_of(grant.left_micro), "f"),
        "kind": grant.kind,
        "priority": grant.priority,
        "effective_at": instant_text(instant_ms(grant.effective_at)),
        "expires_at": grant.expires_at and instant_text(instant_ms(grant.expires_at)),
        "every": grant.every,
        "min_rollover": format(credits_of(grant.min_rollover_micro), "f"),
        "max_rollover": format(credits_of(grant.max_rollover_micro), "f"),
    }


def _sentence(answer: dict[str, Any]) -> str:
    until = f" until {answer['expires_at']}" if answer["expires_at"] else ""
    every = f" every {answer['every']}" if answer["every"] else ""
    done = "had these already" if answer["repeated"] else "granted"
    return printable(
        f"{done}: {answer['amount']} credits{every} ({answer['kind']}, priority {answer['priority']}) "
        f"to {answer['user']} from {answer['effective_at']}{until}, id {answer['id']}"
    )


def _instant(text: str | None, *, field: str) -> datetime | None:
    return None if text is None else parse_instant(text, field=field)
