"""`allotment refund`: a usage record is taken back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import AsJson, UserId, user_of
from cli.output import Output, printable
from cli.session import open_session, run
from quota.errors import InvalidValueError
from quota.values import AMOUNT_MAX, credits_of, parse_amount
from service.refunds import refund

if TYPE_CHECKING:
    from quota.values import User
    from service.refunds import Refunded

__all__ = ["EXAMPLES", "command"]

_DIGITS_MAX = 20  # more than any amount has; Python refuses to read thousands of them

EXAMPLES = (
    "allotment refund user-1 job-42",
    "allotment refund user-1 job-42 --amount 3",
    "allotment refund user-1 job-42 --amount 3 --id complaint-7    a repeat gives nothing more",
)


def command(
    user: UserId,
    key: Annotated[str, typer.Argument(help="The key of the record.")],
    *,
    amount: Annotated[
        str | None, typer.Option(metavar="UNITS", help="All that are left, if not given.")
    ] = None,
    refund_id: Annotated[
        str | None, typer.Option("--id", help="A name: a repeat with it gives nothing more.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Take units of a usage record back, and give what was paid for them to the grants that paid.

    What a grant paid that is over by now does not come back. More than is left of the record is
    clamped to it.
    """
    units = None if amount is None else _units(amount)
    run(_refund(Output(as_json=as_json), user_of(user), key, units, refund_id))


def _units(text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) < _DIGITS_MAX:
        return parse_amount(int(text))
    raise InvalidValueError("amount", text, f"an integer from 1 to {AMOUNT_MAX}")


async def _refund(
    output: Output, user: User, key: str, units: int | None, refund_id: str | None
) -> None:
    async with open_session(output) as session:
        refunded = await refund(
            session.stores(),
            user,
            await session.rules(),
            key,
            amount=units,
            refund_id=refund_id,
            grace_ms=session.settings.late_grace * 1000,
        )
    answer = {"user": user.text, **_answer(refunded)}
    output.result(answer, _sentence(answer))


def _answer(refunded: Refunded) -> dict[str, Any]:
    return {
        "key": refunded.key,
        "refund_id": refunded.refund_id,
        "amount": refunded.amount,
        "credits": format(credits_of(refunded.credits_micro), "f"),
        "due": format(credits_of(refunded.due_micro), "f"),
        "replayed": refunded.replayed,
        "note": refunded.note,
    }


def _sentence(answer: dict[str, Any]) -> str:
    why = f": {answer['note']}" if answer["note"] else ""
    again = " before" if answer["replayed"] else ""
    return printable(
        f"refunded{again}: {answer['amount']} units of {answer['key']}, "
        f"{answer['credits']} credits{why}"
    )
