"""`allotment balance`: what a user has left."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cli.options import AsJson, UserId, user_of
from cli.output import Output, printable, table
from cli.session import open_session, run
from cli.subscription import subscription_line
from quota.values import credits_of, instant_text
from service.subscriptions import stretches_of
from service.users import find_user

if TYPE_CHECKING:
    from rich.table import Table

    from quota.balance import Balance
    from quota.burndown import Grant
    from quota.values import User

__all__ = ["EXAMPLES", "command"]

EXAMPLES = (
    "allotment balance user-1",
    "allotment balance 22c9d63f-f1a3-4879-b1f3-1a1d5ed89f01 --json",
)


def command(user: UserId, *, as_json: AsJson = False) -> None:
    """Show a user's day on the tier, credits, grants in burn order, and what is left of every limit."""
    run(_balance(Output(as_json=as_json), user_of(user)))


async def _balance(output: Output, user: User) -> None:
    async with open_session(output) as session:
        await session.rules()  # without tiers there is nothing to look up
        async with session.quota() as quota:
            balance = await quota.balance(user.text)
        async with session.database.session() as transaction:
            row = await find_user(transaction, user)
            *_, running = await stretches_of(transaction, row)
        subscription = running.as_dict(timezone=row.timezone, at=await session.now())
    lines = {
        "user": printable(user.text),
        "tier": balance.tier,
        **subscription_line(subscription),
        "credits": f"{balance.credits:f}",
        "overage": f"{balance.overage:f}",
    }
    output.result(
        {"user": user.text, **balance.as_dict(), "subscription": subscription},
        "".join(f"{name:13} {value}\n" for name, value in lines.items()),
        _grants_table(balance),
        _limits_table(balance),
    )


def _grants_table(balance: Balance) -> Table | str:
    if not balance.grants:
        return "no grants\n"
    columns = ("id", "kind", "priority", "left", "of", "state", "effective", "expires")
    made = table(*columns, title="grants in burn order", right=("priority", "left", "of"))
    for grant in balance.grants:
        made.add_row(
            printable(grant.name or str(grant.id)),
            grant.kind,
            str(grant.priority),
            f"{credits_of(grant.left):f}",
            f"{credits_of(grant.amount):f}",
            _state(grant, balance.at_ms),
            instant_text(grant.effective_at_ms),
            "never" if grant.expires_at_ms is None else instant_text(grant.expires_at_ms),
        )
    return made


def _state(grant: Grant, at_ms: int) -> str:
    if grant.voided_at_ms is not None and grant.voided_at_ms <= at_ms:
        return "voided"
    if grant.expires_at_ms is not None and grant.expires_at_ms <= at_ms:
        return "expired"
    if grant.effective_at_ms > at_ms:
        return "to come"
    return "active" if grant.left else "spent"


def _limits_table(balance: Balance) -> Table | str:
    if not balance.limits:
        return "no limits"
    columns = ("feature", "per", "mode", "used", "max", "remaining", "resets")
    made = table(*columns, title="limits", right=("used", "max", "remaining"))
    for name, state in balance.limits.items():
        resets_at = state.as_dict()["resets_at"]
        if resets_at is None:
            resets_at = "at first use" if state.per.startswith("window:") else "never"
        made.add_row(
            name.rpartition("/")[0],
            state.per,
            state.mode,
            str(state.used),
            "unlimited" if state.limit is None else str(state.limit),
            "unlimited" if state.remaining is None else str(state.remaining),
            resets_at,
        )
    return made
