"""Grants are checked whole before anything of them is written, and leave an entry."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from models import CreditGrant
from quota.errors import InvalidValueError
from quota.rules import Rules
from quota.values import MICRO, MICRO_MAX, parse_user_id
from service.grants import add_grant
from service.tiers import stored_rules
from worker.deps import Deps

USER = parse_user_id("user-1")
START = datetime(2025, 3, 1, tzinfo=UTC)


async def give(deps: Deps, **how: Any) -> CreditGrant:
    rules = await stored_rules(deps.database)
    assert isinstance(rules, Rules)
    async with deps.database.session() as session:
        return await add_grant(
            session, USER, rules, **{"amount_micro": 5 * MICRO, "at": START, **how}
        )


async def rows(deps: Deps, table: str) -> list[dict[str, Any]]:
    async with deps.database.connection() as connection:
        return [dict(row) for row in await connection.fetch(f"SELECT * FROM {table}")]


async def test_a_grant_has_an_entry_from_the_start(deps: Deps):
    grant = await give(deps, name="g", every="week", max_rollover_micro=3, min_rollover_micro=2)

    [entry] = await rows(deps, "credit_entries")
    [row] = await rows(deps, "credit_grants")
    assert (entry["kind"], entry["amount_micro"], entry["grant_id"]) == (
        "granted", 5 * MICRO, grant.id,
    )  # fmt: skip
    assert (row["every"], row["min_rollover_micro"], row["max_rollover_micro"]) == ("week", 2, 3)
    assert (row["created_at"], row["effective_at"]) == (START, START)


async def test_a_grant_of_nothing_is_refused(deps: Deps):
    with pytest.raises(InvalidValueError, match="credits above 0") as refused:
        await give(deps, amount_micro=0)

    assert refused.value.field == "amount"


async def test_a_repeat_under_the_same_name_gives_nothing_more(deps: Deps):
    first = await give(deps, name="g", every="day")
    again = await give(deps, name="g", every="day", at=START + timedelta(hours=1))

    assert again.id == first.id
    assert len(await rows(deps, "credit_entries")) == 1


async def test_a_repeat_need_not_say_when_the_grant_begins(deps: Deps):
    first = await give(deps, name="g", effective_at=START - timedelta(days=1))

    for begins in (None, START - timedelta(days=1)):
        assert (await give(deps, name="g", effective_at=begins)).id == first.id


@pytest.mark.parametrize(
    ("field", "other"),
    [
        ("amount", {"amount_micro": 6 * MICRO}),
        ("priority", {"priority": 2}),
        ("kind", {"kind": "promo"}),
        ("every", {"every": "day"}),
        ("min_rollover", {"min_rollover_micro": 1, "max_rollover_micro": 1}),
        ("max_rollover", {"max_rollover_micro": 1}),
        ("expires_at", {"expires_at": START + timedelta(days=1)}),
        ("effective_at", {"effective_at": START + timedelta(hours=1)}),
    ],
)
async def test_another_grant_under_a_taken_name_is_refused(
    deps: Deps, field: str, other: dict[str, Any]
):
    await give(deps, name="g")

    with pytest.raises(InvalidValueError, match="with another") as caught:
        await give(deps, name="g", **other)
    assert caught.value.field == "id"
    assert caught.value.expected.endswith(field) or field == "min_rollover"
    assert len(await rows(deps, "credit_grants")) == 1


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("amount", {"amount_micro": -1}),
        ("amount", {"amount_micro": MICRO_MAX + 1}),
        ("amount", {"amount_micro": 1.5}),
        ("amount", {"amount_micro": True}),
        ("min_rollover", {"min_rollover_micro": -1}),
        ("max_rollover", {"max_rollover_micro": MICRO_MAX + 1}),
        ("min_rollover", {"min_rollover_micro": 2, "max_rollover_micro": 1}),
        ("priority", {"priority": -1}),
        ("priority", {"priority": 32_768}),
        ("priority", {"priority": True}),
        ("kind", {"kind": "gift"}),
        ("every", {"every": "year"}),
        ("every", {"every": ""}),
        ("id", {"name": ""}),
        ("id", {"name": "a\0"}),
        ("id", {"name": "allowance"}),
        ("expires_at", {"expires_at": START}),
        ("expires_at", {"expires_at": START - timedelta(days=1)}),
        ("expires_at", {"expires_at": datetime(9000, 1, 1, tzinfo=UTC)}),
        ("effective_at", {"effective_at": datetime(9998, 1, 1, tzinfo=UTC)}),
        ("effective_at", {"effective_at": datetime(1969, 12, 31, 23, 59, tzinfo=UTC)}),
        ("effective_at", {"effective_at": datetime(1, 1, 1, tzinfo=UTC)}),
    ],
)
async def test_a_wrong_value_is_refused_by_its_name_and_nothing_is_written(
    deps: Deps, field: str, wrong: dict[str, Any]
):
    with pytest.raises(InvalidValueError) as caught:
        await give(deps, **wrong)

    assert caught.value.field == field
    for table in ("credit_grants", "credit_entries", "users", "stale_users"):
        assert await rows(deps, table) == []
