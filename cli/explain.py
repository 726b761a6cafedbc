"""`allotment explain`: why a user may use a feature once more, or may not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import AsJson, UserId, user_of
from cli.output import Output, printable, table
from cli.session import open_session, run
from quota.values import credits_of, instant_text, parse_feature

if TYPE_CHECKING:
    from rich.table import Table

    from quota.explain import Explanation, GrantState
    from quota.prices import Price
    from quota.values import User

__all__ = ["EXAMPLES", "command"]

EXAMPLES = (
    "allotment explain user-1 tokens",
    "allotment explain user-1 image_generation --json",
)


def command(
    user: UserId,
    feature: Annotated[
        str, typer.Argument(help="What would be used, one unit of it.", show_default=False)
    ],
    *,
    as_json: AsJson = False,
) -> None:
    """Show what decides about one more unit: every limit, the grants that pay, Redis beside PostgreSQL."""
    run(_explain(Output(as_json=as_json), user_of(user), parse_feature(feature)))


async def _explain(output: Output, user: User, feature: str) -> None:
    async with open_session(output) as session:
        await session.rules()  # without tiers there is nothing to explain by
        async with session.quota() as quota:
            explanation = await quota.explain(user.text, feature)
    output.result(
        {"user": user.text, **explanation.as_dict()},
        _head(user, explanation),
        _limits_table(explanation),
        _grants_table(explanation),
        _entries_table(explanation),
        _compared_table(explanation),
    )


def _head(user: User, explanation: Explanation) -> str:
    decision = explanation.decision
    verdict = "allowed" if decision.allowed else "denied"
    lines = [
        ("user", printable(user.text)),
        ("tier", explanation.user_tier),
        ("one unit", f"{verdict}: {decision.code}"),
        ("bound by", explanation.binds or "nothing"),
        ("price", _price_text(explanation.price)),
        ("credits", f"{credits_of(explanation.credits_micro):f}"),
        ("overage", f"{credits_of(explanation.overage_micro):f}"),
        ("held", f"{credits_of(explanation.held_micro):f}"),
    ]
    if decision.retry_after is not None:
        lines.insert(4, ("retry in", f"{decision.retry_after} s"))
    return "".join(f"{name:<9} {text}\n" for name, text in lines)


def _price_text(price: Price | None) -> str:
    if price is None:
        return "none, it asks no credits"
    parts = [f"{price.base:f} a unit"]
    for kind, named in (("format", price.formats), ("quality", price.qualities)):
        parts += [f"x {value:f} for {kind} {printable(name)}" for name, value in named.items()]
    return ", ".join(parts)


def _limits_table(explanation: Explanation) -> Table | str:
    if not explanation.limits:
        return "no limits\n"
    columns = ("per", "mode", "used", "max", "headroom", "resets")
    made = table(*columns, title="limits", right=("used", "max", "headroom"))
    for state in explanation.limits:
        resets_at = state.as_dict()["resets_at"]
        if resets_at is None:
            resets_at = "at first use" if state.per.startswith("window:") else "never"
        made.add_row(
            state.per,
            state.mode,
            str(state.used),
            "unlimited" if state.limit is None else str(state.limit),
            "unlimited" if state.remaining is None else str(state.remaining),
            resets_at,
        )
    return made


def _grants_table(explanation: Explanation) -> Table | str:
    states = (*explanation.payers, *explanation.others)
    if not states:
        return "no grants\n"
    columns = ("id", "kind", "priority", "left", "of", "pays", "expires", "renews")
    made = table(*columns, title="grants in burn order", right=("priority", "left", "of"))
    for state in states:
        made.add_row(*_grant_row(state))
    return made


def _grant_row(state: GrantState) -> list[str]:
    grant = state.grant
    pays = "yes" if state.reason is None else f"no, {state.reason}"
    if state.reason == "not yet effective":
        pays += f" before {instant_text(grant.effective_at_ms)}"
    return [
        printable(grant.name or str(grant.id)),
        grant.kind,
        str(grant.priority),
        f"{credits_of(grant.left):f}",
        f"{credits_of(grant.amount):f}",
        pays,
        "never" if grant.expires_at_ms is None else instant_text(grant.expires_at_ms),
        "never" if state.renews_at_ms is None else instant_text(state.renews_at_ms),
    ]


def _entries_table(explanation: Explanation) -> Table | str:
    if explanation.entries is None:
        return "what PostgreSQL has is not known: nobody answered\n"
    if not explanation.entries:
        return "no movements of credits\n"
    made = table("at", "kind", "credits", "grant", title="last movements", right=("credits",))
    for entry in explanation.entries:
        grant = "overage" if entry.grant is None else printable(entry.grant)
        amount = f"{credits_of(entry.amount_micro):f}"
        made.add_row(instant_text(entry.at_ms), entry.kind, amount, grant)
    return made


def _compared_table(explanation: Explanation) -> Table | str:
    if explanation.compared is None:
        return ""
    numbers = ("Redis", "PostgreSQL + log", "drift")
    made = table("what", *numbers, title="cached against stored", right=numbers)
    for one in explanation.compared:
        shown = one.as_dict()
        made.add_row(one.name, *(str(shown[name]) for name in ("cached", "stored", "drift")))
    return made
