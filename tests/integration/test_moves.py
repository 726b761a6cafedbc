"""A user moves to another tier or calendar: what was used stays used, of limits and of the tier's credits."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from quota.errors import InvalidValueError
from quota.rules import Rules
from quota.values import MICRO, parse_user_id
from service.changes import Stores
from service.moves import move_user
from service.tiers import stored_rules
from worker.deps import Deps

USER = parse_user_id("user-1")
START = datetime(2025, 3, 1, tzinfo=UTC)
ANY = {"*": {"max": "unlimited", "per": "month"}}


def allowance(amount: str, every: str = "month", **more: Any) -> dict[str, Any]:
    return {"credits": {"amount": amount, "every": every}, "limits": ANY, **more}


TIERS = {
    "default_tier": "small",
    "features": {"image": {"price": "1"}},
    "tiers": {
        "small": allowance("20"),
        "big": allowance("100"),
        "over": allowance("100", overdraft=True),
        "none": {"limits": ANY},
    },
}


def days(number: float) -> datetime:
    return START + timedelta(days=number)


@pytest.fixture
async def moved(deps: Deps, apply_tiers: Any) -> Any:
    """move(tier or other changes, at) on TIERS; the user is anchored at START."""
    rules: Rules = await apply_tiers(deps, TIERS)

    async def settle() -> None:
        await deps.drain.run(seconds_max=5)

    stores = Stores(deps.database, deps.redis, deps.keys, settle=settle)

    async def move(tier: str | None = None, *, at: datetime, **changes: Any) -> Any:
        return await move_user(stores, USER, rules, at=at, tier=tier, **changes)

    await move("small", at=START, anchor=START)
    return move


async def balance(deps: Deps, at: datetime) -> int:
    return int((await deps.quota.balance("user-1", now=at)).credits)


async def use(deps: Deps, amount: int, *, at: datetime) -> None:
    await deps.quota.record("user-1", "image", amount, now=at)


async def entries(deps: Deps) -> list[tuple[str, int]]:
    async with deps.database.connection() as connection:
        rows = await connection.fetch(
            "SELECT kind, amount_micro FROM credit_entries ORDER BY created_at, id, place"
        )
    return [(row["kind"], row["amount_micro"] // MICRO) for row in rows]


async def test_what_was_used_of_the_allowance_stays_used(deps: Deps, moved: Any):
    await use(deps, 15, at=days(1))

    await moved("big", at=days(2))
    assert await balance(deps, days(2)) == 85
    await moved("small", at=days(3))
    assert await balance(deps, days(3)) == 5
    await moved("none", at=days(4))
    assert await balance(deps, days(4)) == 0
    found = await entries(deps)
    assert found == [
        ("granted", 20), ("burn", 15), ("renewed", 80), ("lapsed", 80), ("lapsed", 5),
    ]  # fmt: skip


async def test_more_used_than_the_new_allowance_leaves_none(deps: Deps, moved: Any):
    await moved("big", at=days(1))
    await use(deps, 90, at=days(2))

    await moved("small", at=days(3))

    assert await balance(deps, days(3)) == 0
    assert await balance(deps, days(31)) == 20


async def test_an_allowance_that_nobody_touched_is_that_of_the_new_tier(deps: Deps, moved: Any):
    await moved("big", at=days(1))

    assert await balance(deps, days(1)) == 100
    assert await entries(deps) == []


async def test_what_waits_in_the_log_is_charged_by_the_old_tier(deps: Deps, moved: Any):
    await use(deps, 15, at=days(1))  # nobody has applied it

    await moved("none", at=days(2))

    found = await entries(deps)
    assert found == [("granted", 20), ("burn", 15), ("lapsed", 5)]
    assert (await deps.quota.balance("user-1", now=days(2))).overage == 0


async def test_overage_is_paid_by_the_allowance_of_the_new_tier(deps: Deps, moved: Any):
    await moved("none", at=days(1))
    await use(deps, 30, at=days(2))

    await moved("big", at=days(3))

    assert await balance(deps, days(3)) == 70
    assert await entries(deps) == [("granted", 100), ("burn", 30), ("repaid", 30)]


async def test_moves_at_once_come_one_after_the_other(deps: Deps, moved: Any):
    await use(deps, 15, at=days(1))

    await asyncio.gather(*(moved(tier, at=days(2)) for tier in ("big", "over", "big", "over")))

    assert await balance(deps, days(2)) == 85


async def test_another_anchor_is_no_renewal(deps: Deps, moved: Any):
    await use(deps, 15, at=days(1))

    await moved(at=days(20), anchor=days(15))

    assert await balance(deps, days(20)) == 5
    assert await balance(deps, days(45)) == 5
    assert await balance(deps, days(46)) == 20


async def test_decisions_at_once_with_a_move_count_under_one_of_the_tiers(deps: Deps, moved: Any):
    uses = [deps.quota.consume("user-1", "image", 1, now=days(1)) for _ in range(60)]

    decisions, _ = await asyncio.gather(asyncio.gather(*uses), moved("big", at=days(1)))

    allowed = sum(decision.allowed for decision in decisions)
    assert 20 <= allowed <= 60
    assert await balance(deps, days(1)) == 100 - allowed


@pytest.mark.parametrize(("grace_ms", "counted"), [(3_600_000, 3), (7_200_000, 0)])
async def test_what_came_late_is_counted_anew_by_the_setting(
    deps: Deps, moved: Any, grace_ms: int, counted: int
):
    night = days(1) + timedelta(hours=1.5)
    await deps.quota.record("user-1", "image", 3, occurred_at=days(0.9), now=night)
    await deps.drain.run(seconds_max=5)
    rules = await stored_rules(deps.database)
    assert rules is not None

    stores = Stores(deps.database, deps.redis, deps.keys, grace_ms=grace_ms)
    await move_user(stores, USER, rules, at=night, cycle_months=2)

    async with deps.database.connection() as connection:
        assert await connection.fetchval("SELECT day_used FROM usage_counters") == counted


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("tier", {"tier": "gold"}),
        ("timezone", {"timezone": "Mars/Olympus"}),
        ("anchor", {"anchor": datetime(1969, 1, 1, tzinfo=UTC)}),
        ("anchor", {"anchor": datetime(9000, 1, 1, tzinfo=UTC)}),
        ("cycle_months", {"cycle_months": 0}),
        ("cycle_months", {"cycle_months": 121}),
    ],
)
async def test_a_wrong_value_is_refused_by_its_name_and_nothing_changes(
    deps: Deps, moved: Any, field: str, wrong: dict[str, Any]
):
    with pytest.raises(InvalidValueError) as caught:
        await moved(at=days(1), **wrong)

    assert caught.value.field == field
    rules = await stored_rules(deps.database)
    assert rules is not None
    assert (await deps.quota.balance("user-1", now=days(1))).tier == "small"
