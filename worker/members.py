"""What PostgreSQL has of the users in a run: calendars, and of those who pay grants, holds and allowance."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import msgspec

from quota.account import payments_of
from quota.period import Calendar
from quota.values import instant_of, parse_user_id, uuid7_time_ms
from service.database import statement
from service.grants import stored_grant
from service.tiers import stored_allowances
from service.usage_log import RESERVE, Line
from worker.batch import Member
from worker.holding import Hold

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    import asyncpg

    from quota.burndown import Grant

__all__ = ["members_of"]


async def members_of(
    connection: asyncpg.Connection[Any], lines: Sequence[Any]
) -> dict[UUID, Member]:
    """The users of *lines*; those that PostgreSQL no longer has are made again."""
    rows = await _users(connection, lines)
    enders = {
        user_id
        for user_id, line, _, _, _ in lines
        if line.code is not None and line.code.op != RESERVE
    }
    payers = enders | {user_id for user_id, _, cost, _, _ in lines if cost}
    grants = await _grants(connection, payers, enders)
    holds = await _holds(connection, payers)
    allowances = await stored_allowances(connection) if payers else {}
    return {
        row["id"]: Member(
            Calendar(row["timezone"], row["anchor_ms"], row["cycle_months"]),
            row["overage_micro"],
            row["overage_at_ms"],
            grants[row["id"]],
            holds[row["id"]],
            allowances.get(row["tier"], ()),
        )
        for row in rows
    }


async def _users(connection: asyncpg.Connection[Any], lines: Sequence[Any]) -> list[Any]:
    names = {user_id: line.user for user_id, line, _, _, _ in lines}
    rows = await connection.fetch(statement("worker", "members"), list(names))
    if len(rows) < len(names):
        missing = sorted(set(names) - {row["id"] for row in rows})
        external = [parse_user_id(names[user_id]).external_id for user_id in missing]
        at = instant_of(lines[0][3])
        await connection.execute(statement("worker", "add_users"), missing, external, at)
        rows = await connection.fetch(statement("worker", "members"), list(names))
    return rows


async def _grants(
    connection: asyncpg.Connection[Any], payers: set[UUID], enders: set[UUID]
) -> dict[UUID, list[Grant]]:
    grants: dict[UUID, list[Grant]] = defaultdict(list)
    if payers:
        rows = await connection.fetch(
            statement("worker", "member_grants"), list(payers), list(enders)
        )
        for row in rows:
            grants[row["user_id"]].append(stored_grant(row))
    return grants


async def _holds(
    connection: asyncpg.Connection[Any], payers: set[UUID]
) -> dict[UUID, dict[str, Hold]]:
    holds: dict[UUID, dict[str, Hold]] = defaultdict(dict)
    if payers:
        for row in await connection.fetch(statement("worker", "member_holds"), list(payers)):
            holds[row["user_id"]][row["key"]] = _hold(row)
    return holds


def _hold(row: Any) -> Hold:
    line = msgspec.json.decode(row["record"], type=Line)
    return Hold(
        row["user_id"],
        line.key,
        row["id"] if uuid7_time_ms(line.key) is None else line.key,  # as `keyed` has it
        row["feature"],
        row["amount"],
        row["cost_micro"],
        row["price"],
        line,
        payments_of(json.loads(row["payments"])),
        [(seconds, end_ms) for seconds, end_ms in json.loads(row["windows"])],
        row["reserved_ms"],
        row["expires_ms"],
    )
