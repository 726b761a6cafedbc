"""What users have of credits, added up anew from the entries of every movement and from open holds.

The entries are what balances are made from. Where they do not fit the log of usage, some are missing:
then nothing tells what a balance should be, and it is left as it is.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

from quota.allowance import allowance_id
from service.database import statement
from service.verify_usage import STATEMENT_S_MAX

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    import asyncpg

    from service.figures import Figures
    from service.verify_usage import Uses

__all__ = ["compare_credits"]

_SPENT = ("burnt", "left", "held", "expired", "voided")


async def compare_credits(
    connection: asyncpg.Connection[Any],
    users: Mapping[UUID, Any],
    uses: Uses,
    figures: Figures,
    *,
    at: datetime,
) -> None:
    """Compare grants, overage, the sum of all credits, and entries with usage and refunds, of *users*."""
    ids = list(users)
    grants: dict[UUID, list[Any]] = defaultdict(list)
    for row in await _fetch(connection, "verify_grants", ids):
        grants[row["user_id"]].append(row)
    logged, refunded = _charged(uses)
    unpaid = _holds_not_paid(uses)
    for row in await _fetch(connection, "credits", ids, at):
        user_id = row["user_id"]
        wrong = figures.compare(
            user_id, "credit_entries.burn", None, row["burns"], logged[user_id], mendable=False
        )
        wrong |= figures.compare(
            user_id, "credit_entries.refund", None, row["refunds"], refunded[user_id],
            mendable=False,
        )  # fmt: skip
        for key, paid, cost in unpaid.get(user_id, ()):
            wrong |= figures.compare(user_id, "holds.payments", key, paid, cost, mendable=False)
        wrong |= _compare_given(user_id, grants[user_id], figures)
        wrong |= row["owed"] < 0 or any(_unexplained(grant) for grant in grants[user_id])
        _compare_balances(row, grants[user_id], figures, mendable=not wrong)


def _charged(uses: Uses) -> tuple[Counter[UUID], Counter[UUID]]:
    """Micro-credits that the usage of each user cost, and that came back of it."""
    logged: Counter[UUID] = Counter()
    refunded: Counter[UUID] = Counter()
    for (user_id, _), row in uses.logged.items():
        logged[user_id] += row["cost_micro"]
        refunded[user_id] += row["refunded_micro"]
    return logged, refunded


def _holds_not_paid(uses: Uses) -> dict[UUID, list[tuple[str, int, int]]]:
    """Open holds by user whose payments are not what they cost: key, payments, cost."""
    found: dict[UUID, list[tuple[str, int, int]]] = defaultdict(list)
    for (user_id, _), holds in uses.held.items():
        for hold in holds:
            paid = sum(payment[1] for payment in json.loads(hold["payments"]))
            if paid != hold["cost_micro"]:
                found[user_id].append((hold["key"], paid, hold["cost_micro"]))
    return found


def _compare_given(user_id: UUID, grants: Sequence[Any], figures: Figures) -> bool:
    """Whether a grant lacks the entry of what was given, or has entries and is gone itself.

    A tier's allowance changes its amount.
    """
    wrong = False
    for grant in grants:
        if grant["left_micro"] is None:
            wrong |= figures.compare(
                user_id, "credit_grants", grant["name"], None, grant["counted_micro"],
                mendable=False,
            )  # fmt: skip
        elif grant["id"] != allowance_id(user_id):
            wrong |= figures.compare(
                user_id, "credit_entries.granted", grant["name"],
                grant["granted_micro"], grant["amount_micro"], mendable=False,
            )  # fmt: skip
    return wrong


def _unexplained(grant: Any) -> bool:
    """Whether the grant's entries can not be all of them."""
    if grant["counted_micro"] < 0 or (grant["voided"] and grant["counted_micro"]):
        return True
    # An allowance that was nothing at first has no such entry.
    return not grant["granted_micro"] and grant["counted_micro"] != grant["left_micro"]


def _compare_balances(row: Any, grants: Sequence[Any], figures: Figures, *, mendable: bool) -> None:
    user_id, off = row["user_id"], 0
    for grant in grants:
        left, counted = grant["left_micro"], grant["counted_micro"]
        if left is None:
            off += counted
        elif figures.compare(
            user_id, "credit_grants.left_micro", grant["name"], left, counted, mendable=mendable
        ):
            off += counted - left
            if mendable:
                figures.mend_with("grants", (user_id, grant["id"], counted))
    owed, overage = row["owed"], row["overage"]
    if figures.compare(user_id, "users.overage_micro", None, overage, owed, mendable=mendable):
        off -= owed - overage
        if mendable:
            figures.mend_with("overages", (user_id, owed))
    spent = sum(row[part] for part in _SPENT) - row["overage"]
    # With what is off above put right, what is still off has entries of no grant.
    figures.compare(user_id, "credits.granted", None, row["granted"], spent + off, mendable=False)


async def _fetch(connection: asyncpg.Connection[Any], name: str, *arguments: Any) -> list[Any]:
    rows: list[Any] = await connection.fetch(
        statement("service", name), *arguments, timeout=STATEMENT_S_MAX
    )
    return rows
