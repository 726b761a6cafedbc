"""The void of a grant and the reset of credits: whole or not at all, once, whatever comes between."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from quota.client import Quota
from quota.errors import (
    InvalidValueError,
    QuotaUnavailableError,
    UnknownGrantError,
    UnknownUserError,
)
from quota.rules import Rules
from quota.values import MICRO, instant_ms, parse_user_id
from service import changes, still
from service.changes import Stores
from service.credits import Reset, Void, reset_credits, void_grant
from service.grants import add_grant
from service.loading import DatabaseLoader
from service.tiers import stored_rules
from worker.deps import Deps
from worker.holds import expire_holds

USER = parse_user_id("user-1")
START = datetime(2025, 3, 1, tzinfo=UTC)


def hours(number: float) -> datetime:
    return START + timedelta(hours=number)


async def rules_of(deps: Deps) -> Rules:
    rules = await stored_rules(deps.database)
    assert rules is not None
    return rules


def stores_of(deps: Deps) -> Stores:
    async def settle() -> None:
        await deps.drain.run(seconds_max=5)

    async def roll(user: str, *, now: datetime | None) -> None:
        loader = DatabaseLoader(
            deps.database, deps.redis, auto_provision=False, dedupe_ms=86_400_000
        )
        async with Quota(deps.redis, prefix=deps.keys.prefix, loader=loader) as quota:
            await quota.roll(user, now=now)

    return Stores(deps.database, deps.redis, deps.keys, settle=settle, roll=roll)


async def give(deps: Deps, credits: int, name: str | None = "g", **how: Any) -> str:
    async with deps.database.session() as session:
        grant = await add_grant(
            session, USER, await rules_of(deps),
            amount_micro=credits * MICRO, at=how.pop("at", START), name=name, **how,
        )  # fmt: skip
    await changes.drop_quietly(stores_of(deps), USER)
    return str(grant.id)


async def void(deps: Deps, grant: str = "g", *, at: datetime) -> Void:
    return await void_grant(stores_of(deps), USER, await rules_of(deps), grant, at=at)


async def reset(deps: Deps, *, at: datetime, preserve_overage: bool = False) -> Reset:
    return await reset_credits(
        stores_of(deps), USER, await rules_of(deps), preserve_overage=preserve_overage, at=at
    )


async def use(deps: Deps, credits: int, *, at: datetime) -> None:
    await deps.quota.record("user-1", "image", credits, now=at)


async def entries(deps: Deps) -> list[tuple[str, int]]:
    """What the entries say, in the order of time: kind and whole credits."""
    async with deps.database.connection() as connection:
        rows = await connection.fetch(
            "SELECT kind, amount_micro FROM credit_entries ORDER BY created_at, id, place"
        )
    return [(row["kind"], row["amount_micro"] // MICRO) for row in rows]


async def left(deps: Deps) -> dict[str, int]:
    async with deps.database.connection() as connection:
        rows = await connection.fetch("SELECT name, left_micro FROM credit_grants")
    return {row["name"]: row["left_micro"] // MICRO for row in rows}


async def test_a_void_takes_what_is_left_and_leaves_what_was_paid(deps: Deps):
    await give(deps, 100)
    await use(deps, 30, at=hours(1))

    done = await void(deps, at=hours(2))

    assert (done.voided, done.note) == (70 * MICRO, None)
    assert await left(deps) == {"g": 0}
    assert await entries(deps) == [("granted", 100), ("burn", 30), ("voided", 70)]
    assert (await deps.quota.balance("user-1", now=hours(3))).credits == 0


async def test_a_void_by_the_id_that_every_grant_has_works_too(deps: Deps):
    grant_id = await give(deps, 100, name=None)

    assert (await void(deps, grant_id, at=hours(2))).voided == 100 * MICRO


async def test_a_repeated_void_has_nothing_to_void_and_says_when_it_was(deps: Deps):
    await give(deps, 100)
    await void(deps, at=hours(1))

    again = await void(deps, at=hours(2))

    assert (again.voided, again.note) == (0, "it was voided at 2025-03-01T01:00:00Z")
    assert await entries(deps) == [("granted", 100), ("voided", 100)]


async def test_the_void_of_an_expired_grant_says_when_it_expired(deps: Deps):
    await give(deps, 100, expires_at=hours(1))

    done = await void(deps, at=hours(1))

    assert (done.voided, done.note) == (0, "it expired at 2025-03-01T01:00:00Z")
    assert await left(deps) == {"g": 100}


async def test_the_void_of_a_spent_grant_ends_it_too(deps: Deps):
    await give(deps, 10, every="day")
    await use(deps, 10, at=hours(1))

    done = await void(deps, at=hours(2))

    assert (done.voided, done.note) == (0, "nothing was left of it")
    assert (await deps.quota.balance("user-1", now=hours(49))).credits == 0


async def test_the_void_of_a_grant_to_come_takes_it_whole(deps: Deps):
    await give(deps, 100, effective_at=hours(10))

    assert (await void(deps, at=hours(1))).voided == 100 * MICRO
    assert (await deps.quota.balance("user-1", now=hours(11))).credits == 0


async def test_voids_at_once_void_once(deps: Deps):
    await give(deps, 100)

    done = await asyncio.gather(*(void(deps, at=hours(2)) for _ in range(5)))

    assert sum(one.voided for one in done) == 100 * MICRO
    assert await entries(deps) == [("granted", 100), ("voided", 100)]


async def test_uses_at_once_with_a_void_pay_before_it_or_not_at_all(deps: Deps):
    await give(deps, 100)
    uses = [deps.quota.consume("user-1", "image", 1, now=hours(1)) for _ in range(100)]

    decisions, done = await asyncio.gather(asyncio.gather(*uses), void(deps, at=hours(2)))

    allowed = sum(decision.allowed for decision in decisions)
    assert done.voided == (100 - allowed) * MICRO
    await deps.drain.run(seconds_max=5)
    assert sum(amount for kind, amount in await entries(deps) if kind == "burn") == allowed
    assert await left(deps) == {"g": 0}


async def test_a_grant_or_user_that_is_not_there_can_not_be_voided(deps: Deps):
    with pytest.raises(UnknownUserError):
        await void(deps, at=hours(1))
    await give(deps, 100)

    with pytest.raises(UnknownGrantError):
        await void(deps, "another", at=hours(1))
    for wrong in ("", "a\0b", "x" * 201):
        with pytest.raises(InvalidValueError) as caught:
            await void(deps, wrong, at=hours(1))
        assert caught.value.field == "grant"
    assert await left(deps) == {"g": 100}


async def test_an_allowance_is_not_voided(deps: Deps, apply_tiers: Any):
    tier = {"credits": {"amount": "20", "every": "month"}, "limits": {}}
    await apply_tiers(deps, {"default_tier": "free", "tiers": {"free": tier}})
    await give(deps, 1)

    with pytest.raises(InvalidValueError, match="allowance goes with the tier"):
        await void(deps, "allowance", at=hours(1))


class Died(BaseException):
    """A process that is killed."""


@pytest.mark.parametrize("after", ["load_account", "store_account"])
async def test_a_process_that_dies_before_the_commit_has_changed_nothing(
    deps: Deps, monkeypatch: pytest.MonkeyPatch, after: str
):
    await give(deps, 100)
    step = getattr(changes, after)

    async def die(*args: Any, **named: Any) -> None:
        await step(*args, **named)
        raise Died

    with monkeypatch.context() as patched:
        patched.setattr(changes, after, die)
        with pytest.raises(Died):
            await void(deps, at=hours(1))

    assert await left(deps) == {"g": 100}
    assert (await void(deps, at=hours(2))).voided == 100 * MICRO


async def test_a_process_that_dies_after_the_commit_has_changed_all(
    deps: Deps, monkeypatch: pytest.MonkeyPatch
):
    await give(deps, 100)

    async def die(*_: Any) -> None:
        raise Died

    with monkeypatch.context() as patched:
        patched.setattr(changes, "drop_quietly", die)
        with pytest.raises(Died):
            await void(deps, at=hours(1))

    assert (await void(deps, at=hours(2))).voided == 0
    assert (await deps.quota.balance("user-1", now=hours(2))).credits == 0


async def test_nothing_changes_while_the_log_is_behind_and_nobody_applies_it(
    deps: Deps, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("service.still.WAIT_S", 0.2)
    standing_still: Any = still.standing_still
    monkeypatch.setitem(standing_still.__wrapped__.__kwdefaults__, "wait_s", 0.2)
    await give(deps, 100)
    await use(deps, 30, at=hours(1))
    stores = Stores(deps.database, deps.redis, deps.keys)

    with pytest.raises(QuotaUnavailableError, match="is a worker running"):
        await void_grant(stores, USER, await rules_of(deps), "g", at=hours(2))

    assert await left(deps) == {"g": 100}


async def test_a_reset_lets_each_grant_roll_over_within_its_bounds(deps: Deps):
    await give(deps, 100, "most", max_rollover_micro=40 * MICRO)
    await give(deps, 10, "least", min_rollover_micro=25 * MICRO, max_rollover_micro=30 * MICRO)
    await give(deps, 10, "none")
    await give(deps, 10, "to come", effective_at=hours(9), max_rollover_micro=0)

    done = await reset(deps, at=hours(2))

    assert await left(deps) == {"most": 40, "least": 25, "none": 0, "to come": 10}
    assert (done.lapsed, done.renewed, done.credits) == (70 * MICRO, 15 * MICRO, 65 * MICRO)
    assert (await deps.quota.balance("user-1", now=hours(2))).credits == 65


async def test_a_grant_that_begins_at_the_instant_of_a_reset_counts_whole(deps: Deps):
    await give(deps, 100, "before")
    await give(deps, 50, "then", effective_at=hours(2))

    assert (await reset(deps, at=hours(2))).credits == 50 * MICRO
    assert await left(deps) == {"before": 0, "then": 50}


async def test_a_recurrence_at_the_instant_of_a_reset_comes_after_it(deps: Deps):
    await give(deps, 100, every="day", max_rollover_micro=10 * MICRO)
    await use(deps, 30, at=hours(1))

    assert (await reset(deps, at=hours(24))).credits == 100 * MICRO


async def test_overage_is_dropped_by_a_reset_and_said_to_be(deps: Deps):
    await use(deps, 30, at=hours(1))

    done = await reset(deps, at=hours(2))

    assert (done.forgiven, done.overage, done.credits) == (30 * MICRO, 0, 0)
    assert await entries(deps) == [("burn", 30), ("forgiven", 30)]
    assert (await deps.quota.balance("user-1", now=hours(3))).overage == 0


async def test_preserved_overage_burns_from_what_rolled_over(deps: Deps):
    await give(deps, 10, min_rollover_micro=20 * MICRO, max_rollover_micro=20 * MICRO)
    await use(deps, 25, at=hours(1))

    done = await reset(deps, at=hours(2), preserve_overage=True)

    assert (done.repaid, done.overage, done.credits) == (15 * MICRO, 0, 5 * MICRO)
    assert await left(deps) == {"g": 5}
    found = await entries(deps)
    assert [one for one in found if one[0] in ("renewed", "repaid")] == [
        ("renewed", 20), ("repaid", 15),
    ]  # fmt: skip


async def test_preserved_overage_that_nothing_pays_stays(deps: Deps):
    await use(deps, 25, at=hours(1))

    assert (await reset(deps, at=hours(2), preserve_overage=True)).overage == 25 * MICRO
    assert (await deps.quota.balance("user-1", now=hours(3))).overage == Decimal(25)


async def test_a_reset_of_nobody_is_refused(deps: Deps):
    with pytest.raises(UnknownUserError):
        await reset(deps, at=hours(1))


async def test_what_moved_by_itself_before_a_change_is_written_down_with_it(deps: Deps):
    await give(deps, 100, every="day")
    await use(deps, 60, at=hours(1))

    assert (await void(deps, at=hours(30))).voided == 100 * MICRO
    found = await entries(deps)
    assert found == [("granted", 100), ("burn", 60), ("renewed", 60), ("voided", 100)]


async def test_a_hold_that_is_over_gives_its_units_and_credits_back_before_a_change(deps: Deps):
    await give(deps, 10)
    await deps.quota.reserve("user-1", "unit", 4, ttl=60, key="h", now=START)

    assert (await void(deps, at=hours(1))).voided == 10 * MICRO
    assert await hold_and_units(deps) == ("expired", 0)
    assert (await deps.quota.release("user-1", "h", now=hours(2))).status == "expired"
    await deps.drain.run(seconds_max=5)
    assert await entries(deps) == [("granted", 10), ("voided", 10)]


async def test_a_hold_that_redis_has_not_ended_ends_with_the_change(deps: Deps):
    await give(deps, 10)
    await deps.quota.reserve("user-1", "unit", 4, ttl=60, key="h", now=START)
    stores = stores_of(deps)
    stores.roll = None

    done = await void_grant(stores, USER, await rules_of(deps), "g", at=hours(1))

    assert done.voided == 10 * MICRO
    assert await hold_and_units(deps) == ("expired", 0)
    assert await expire_holds(deps, now_ms=instant_ms(hours(2))) == 1
    assert await expire_holds(deps, now_ms=instant_ms(hours(2))) == 0
    await deps.drain.run(seconds_max=5)
    assert await hold_and_units(deps) == ("expired", 0)
    assert await entries(deps) == [("granted", 10), ("voided", 10)]


async def hold_and_units(deps: Deps) -> tuple[str, int]:
    """How the hold ended, and the units that are counted this month."""
    async with deps.database.connection() as connection:
        status = await connection.fetchval("SELECT status FROM holds")
        used = await connection.fetchval("SELECT month_used FROM usage_counters")
    return status, used


async def test_a_hold_that_is_open_keeps_what_it_holds(deps: Deps):
    await give(deps, 10)
    await deps.quota.reserve("user-1", "unit", 4, ttl=60, key="h", now=START)

    assert (await void(deps, at=START)).voided == 2 * MICRO
    ended = await deps.quota.commit("user-1", "h", 3, now=START)
    await deps.drain.run(seconds_max=5)

    assert ended.cost == 6
    found = await entries(deps)
    assert sorted(found) == [("burn", 6), ("granted", 10), ("lapsed", 2), ("voided", 2)]
