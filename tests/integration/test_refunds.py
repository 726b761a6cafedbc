"""Refunds: to who paid, last first, never more than was paid, out of the periods that counted."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quota.errors import (
    InvalidValueError,
    KeyConflictError,
    QuotaUnavailableError,
    UnknownKeyError,
    UnknownUserError,
)
from quota.rules import Rules
from quota.values import MICRO, new_key, parse_user_id
from service import changes, refunds, still
from service.changes import Stores, drop_quietly
from service.credits import reset_credits, void_grant
from service.grants import add_grant
from service.refunds import Refunded, refund
from service.tiers import stored_rules
from service.users import put_user
from worker.deps import Deps

USER = parse_user_id("user-1")
START = datetime(2025, 3, 1, tzinfo=UTC)
LATER = START + timedelta(hours=9)


def hours(number: float) -> datetime:
    return START + timedelta(hours=number)


async def rules_of(deps: Deps) -> Rules:
    rules = await stored_rules(deps.database)
    assert rules is not None
    return rules


def stores_of(deps: Deps) -> Stores:
    async def settle() -> None:
        await deps.drain.run(seconds_max=5)

    return Stores(deps.database, deps.redis, deps.keys, settle=settle)


async def give(deps: Deps, credits: int, name: str = "g", **how: Any) -> None:
    async with deps.database.session() as session:
        await add_grant(
            session, USER, await rules_of(deps),
            amount_micro=credits * MICRO, at=how.pop("at", START), name=name, **how,
        )  # fmt: skip
    await drop_quietly(stores_of(deps), USER)


async def give_back(
    deps: Deps, key: str = "k", amount: int | None = None, *, at: datetime = LATER, **how: Any
) -> Refunded:
    user = how.pop("user", USER)
    return await refund(
        stores_of(deps), user, await rules_of(deps), key, amount=amount, at=at, **how
    )


async def use(deps: Deps, amount: int, *, feature: str = "image", at: datetime = START, **how: Any):
    await deps.quota.record("user-1", feature, amount, key=how.pop("key", "k"), now=at, **how)


async def left(deps: Deps) -> dict[str, float]:
    async with deps.database.connection() as connection:
        rows = await connection.fetch("SELECT name, left_micro FROM credit_grants")
    return {row["name"]: row["left_micro"] / MICRO for row in rows}


async def overage(deps: Deps) -> float:
    async with deps.database.connection() as connection:
        found: int = await connection.fetchval("SELECT overage_micro FROM users")
    return found / MICRO


async def units(deps: Deps, per: str, feature: str = "event") -> int:
    async with deps.database.connection() as connection:
        found: int = await connection.fetchval(
            f"SELECT {per}_used FROM usage_counters WHERE feature = $1", feature
        )
    return found


async def test_what_was_paid_goes_back_to_who_paid_last_first(deps: Deps):
    await give(deps, 5, "first", expires_at=hours(100))
    await give(deps, 20, "second")
    await use(deps, 8)

    done = [await give_back(deps, amount=amount) for amount in (2, 4, 10)]

    assert [(one.amount, one.credits_micro // MICRO) for one in done] == [(2, 2), (4, 4), (2, 2)]
    assert [one.note for one in done] == [
        None, None, "only so many units of the record were left to refund",
    ]  # fmt: skip
    assert await left(deps) == {"first": 5, "second": 20}


async def test_a_repeat_gives_nothing_more_and_says_so(deps: Deps):
    await give(deps, 20)
    await use(deps, 8)
    await give_back(deps)

    again = await give_back(deps)

    assert (again.amount, again.due_micro, again.credits_micro) == (0, 0, 0)
    assert again.note == "all of the record was refunded before"
    assert await left(deps) == {"g": 20}


async def test_refunds_at_once_give_back_once(deps: Deps):
    await give(deps, 20)
    await use(deps, 8)

    done = await asyncio.gather(*(give_back(deps) for _ in range(4)))

    assert sorted(one.amount for one in done) == [0, 0, 0, 8]
    assert await left(deps) == {"g": 20}


async def test_a_refund_with_a_name_answers_a_repeat_as_the_first(deps: Deps):
    await give(deps, 20)
    await use(deps, 8)

    first = await give_back(deps, amount=3, refund_id="r")
    again = await give_back(deps, amount=3, refund_id="r")
    other = await give_back(deps, amount=3, refund_id="s")

    assert (first.amount, again.amount, other.amount) == (3, 3, 3)
    assert (first.replayed, again.replayed, other.replayed) == (False, True, False)
    assert again.credits_micro == 3 * MICRO
    assert await left(deps) == {"g": 18}


async def test_a_named_refund_of_several_lines_is_repeated_as_a_whole(deps: Deps):
    await give(deps, 20)
    await deps.quota.record("user-1", {"image": 4, "event": 3}, key="k", now=START)

    first = await give_back(deps, refund_id="r")
    again = await give_back(deps, refund_id="r")

    assert (first.amount, again.amount, again.replayed) == (7, 7, True)
    assert (first.due_micro, again.due_micro) == (4 * MICRO, 4 * MICRO)
    assert await left(deps) == {"g": 20}


async def test_the_name_of_a_refund_is_of_one_record(deps: Deps):
    await give(deps, 20)
    await use(deps, 8)
    await use(deps, 8, key="l")
    await give_back(deps, refund_id="r")

    with pytest.raises(KeyConflictError):
        await give_back(deps, "l", refund_id="r")
    assert await left(deps) == {"g": 12}


async def test_a_grant_that_is_over_gets_nothing_back_and_the_answer_says_so(deps: Deps):
    await give(deps, 5, "expired", expires_at=hours(1))
    await give(deps, 2, "voided", expires_at=hours(50))
    await give(deps, 20, "stays")
    await use(deps, 10)
    await void_grant(stores_of(deps), USER, await rules_of(deps), "voided", at=hours(1))

    done = await give_back(deps)

    assert (done.amount, done.due_micro, done.credits_micro) == (10, 10 * MICRO, 3 * MICRO)
    assert done.note == (
        "a grant that paid is over, or was set back since: what it paid does not come back"
    )
    assert await left(deps) == {"expired": 0, "voided": 0, "stays": 20}


async def test_open_overage_is_reduced(deps: Deps):
    await use(deps, 30)

    done = await give_back(deps, amount=10)

    assert (done.credits_micro, await overage(deps)) == (10 * MICRO, 20)
    assert (await give_back(deps)).credits_micro == 20 * MICRO
    assert await overage(deps) == 0


async def test_repaid_overage_goes_to_who_repaid_newest_first(deps: Deps):
    await use(deps, 30)
    await give(deps, 10, "older", at=hours(1))
    await give(deps, 15, "newer", at=hours(2))

    await give_back(deps, amount=8)  # 5 that are open, and 3
    assert (await overage(deps), await left(deps)) == (0, {"older": 0, "newer": 3})
    await give_back(deps)
    assert await left(deps) == {"older": 10, "newer": 15}


async def test_nobody_gets_back_more_than_it_paid_when_overage_was_forgiven(deps: Deps):
    await use(deps, 5, key="forgiven")
    await reset_credits(stores_of(deps), USER, await rules_of(deps), at=hours(1))
    await use(deps, 5, key="repaid", at=hours(2))
    await give(deps, 8, at=hours(3))

    first = await give_back(deps, "forgiven")
    second = await give_back(deps, "repaid")

    assert first.credits_micro + second.credits_micro == 5 * MICRO
    assert (await left(deps), await overage(deps)) == ({"g": 8}, 0)


async def test_credits_that_come_back_pay_overage_that_is_open(deps: Deps):
    await give(deps, 10)
    await use(deps, 10, key="k")
    await use(deps, 6, key="over", at=hours(1))

    await give_back(deps)

    assert (await left(deps), await overage(deps)) == ({"g": 4}, 0)


async def test_units_leave_the_periods_that_counted_them(deps: Deps):
    await use(deps, 10, feature="event")
    await use(deps, 4, feature="event", key="l", at=hours(24))

    await give_back(deps, at=hours(25))

    assert [await units(deps, per) for per in ("day", "month", "lifetime")] == [4, 4, 4]
    assert (await deps.quota.check("user-1", "event", now=hours(25))).used == 4
    async with deps.database.connection() as connection:
        assert await connection.fetchval("SELECT usage_count FROM feature_usage") == 4


async def test_a_record_that_came_late_leaves_the_period_that_it_counted_in(deps: Deps):
    day = datetime(2025, 3, 3, tzinfo=UTC)
    late: dict[str, Any] = {"feature": "event", "occurred_at": day - timedelta(minutes=5)}
    await use(deps, 1, feature="event", key="now", at=day + timedelta(minutes=10))
    await use(deps, 2, key="in grace", at=day + timedelta(minutes=20), **late)
    await use(deps, 4, key="too late", at=day + timedelta(minutes=70), **late)
    await deps.drain.run(seconds_max=5)
    assert await units(deps, "day") == 5

    await give_back(deps, "in grace", at=day + timedelta(hours=2))
    assert (await units(deps, "day"), await units(deps, "lifetime")) == (5, 5)
    await give_back(deps, "too late", at=day + timedelta(hours=2))
    assert (await units(deps, "day"), await units(deps, "lifetime")) == (1, 1)


async def test_a_window_that_use_opened_is_left_too(deps: Deps, apply_tiers: Any):
    limits = {"event": {"max": 10, "per": "window:3600"}}
    await apply_tiers(deps, {"default_tier": "free", "tiers": {"free": {"limits": limits}}})
    await use(deps, 6, feature="event", key="before")
    await use(deps, 7, feature="event", key="k", at=hours(2))

    await give_back(deps, "before", at=hours(2))
    assert (await deps.quota.check("user-1", "event", now=hours(2))).used == 7
    await give_back(deps, "k", amount=3, at=hours(2))
    assert (await deps.quota.check("user-1", "event", now=hours(2))).used == 4


async def test_a_record_is_found_by_a_key_that_our_client_made(deps: Deps):
    key = new_key(now_ms=int(START.timestamp() * 1000))
    await give(deps, 20)
    await use(deps, 8, key=key)

    assert (await give_back(deps, key)).credits_micro == 8 * MICRO
    assert (await give_back(deps, key)).amount == 0


async def test_without_a_user_the_key_tells_whose_record_it_is(deps: Deps):
    await give(deps, 20)
    await use(deps, 8)  # it is in the log only

    assert (await give_back(deps, user=None)).credits_micro == 8 * MICRO
    with pytest.raises(UnknownKeyError):
        await give_back(deps, "another", user=None)


async def test_without_a_user_a_key_of_several_is_refused(deps: Deps):
    await use(deps, 8)
    await deps.quota.record("user-2", "image", 8, key="k", now=START)
    await deps.drain.run(seconds_max=5)

    with pytest.raises(InvalidValueError) as caught:
        await give_back(deps, user=None)
    assert caught.value.field == "user_id"


async def test_without_a_user_a_log_that_is_behind_makes_no_key_unknown(
    deps: Deps, monkeypatch: pytest.MonkeyPatch
):
    await use(deps, 8)
    log_settled: Any = still.log_settled
    monkeypatch.setitem(log_settled.__kwdefaults__, "wait_s", 0.05)
    stores = Stores(deps.database, deps.redis, deps.keys)

    with pytest.raises(QuotaUnavailableError, match="behind"):
        await refund(stores, None, await rules_of(deps), "k")


async def test_what_is_not_there_can_not_be_refunded(deps: Deps):
    with pytest.raises(UnknownUserError):
        await give_back(deps)
    await use(deps, 8)

    with pytest.raises(UnknownKeyError):
        await give_back(deps, "another")
    with pytest.raises(UnknownKeyError):
        await give_back(deps, new_key(now_ms=0))


@pytest.mark.parametrize(
    ("field", "given"),
    [
        ("key", {"key": ""}),
        ("amount", {"amount": 0}),
        ("amount", {"amount": -1}),
        ("amount", {"amount": 1.5}),
        ("refund_id", {"refund_id": "x" * 201}),
        ("refund_id", {"refund_id": ""}),
    ],
)
async def test_a_wrong_value_is_refused_by_its_name(deps: Deps, field: str, given: Any):
    await use(deps, 8)

    with pytest.raises(InvalidValueError) as caught:
        await give_back(deps, **given)
    assert caught.value.field == field
    assert await overage(deps) == 0  # nothing was even applied


async def test_an_amount_of_a_record_of_several_lines_is_refused(deps: Deps):
    await deps.quota.record("user-1", {"image": 4, "event": 3}, key="k", now=START)

    with pytest.raises(InvalidValueError) as caught:
        await give_back(deps, amount=1)
    assert caught.value.field == "amount"


async def test_a_hold_is_refunded_like_a_record_once_it_is_committed(deps: Deps):
    await give(deps, 20)
    await deps.quota.reserve("user-1", "unit", 4, key="h", now=START)
    with pytest.raises(UnknownKeyError):
        await give_back(deps, "h", at=START)

    await deps.quota.commit("user-1", "h", 7, now=START)
    done = [await give_back(deps, "h", amount, at=START) for amount in (4, None)]

    assert [(one.amount, one.credits_micro // MICRO) for one in done] == [(4, 8), (3, 6)]
    assert (await left(deps), await units(deps, "month", "unit")) == ({"g": 20}, 0)


async def test_overage_that_an_open_hold_took_is_not_the_record_s(deps: Deps):
    async with deps.database.session() as session:
        await put_user(session, USER, await rules_of(deps), at=START, tier="pro")
    await use(deps, 3, feature="unit")
    await deps.quota.reserve("user-1", "unit", 2, key="h", ttl=86_400, now=START)

    await give_back(deps, at=hours(1))
    assert await overage(deps) == 4
    await deps.quota.release("user-1", "h", now=hours(2))
    await deps.drain.run(seconds_max=5)
    assert await overage(deps) == 0


class Died(BaseException):
    """A process that is killed."""


@pytest.mark.parametrize(
    ("module", "step"),
    [
        (refunds, "_lines"),
        (refunds, "take_back_units"),
        (refunds, "_give_back"),
        (changes, "store_account"),
    ],
)
async def test_a_process_that_dies_before_the_commit_has_changed_nothing(
    deps: Deps, monkeypatch: pytest.MonkeyPatch, module: Any, step: str
):
    await give(deps, 20)
    await use(deps, 8)
    done = getattr(module, step)

    async def die(*args: Any, **named: Any) -> None:
        await done(*args, **named)
        raise Died

    with monkeypatch.context() as patched:
        patched.setattr(module, step, die)
        with pytest.raises(Died):
            await give_back(deps, refund_id="r")

    assert (await left(deps), await units(deps, "month", "image")) == ({"g": 12}, 8)
    assert not (await give_back(deps, refund_id="r")).replayed
    assert (await left(deps), await units(deps, "month", "image")) == ({"g": 20}, 0)


async def test_a_process_that_dies_after_the_commit_is_repeated_by_the_name(
    deps: Deps, monkeypatch: pytest.MonkeyPatch
):
    await give(deps, 20)
    await use(deps, 8)

    async def die(*_: Any) -> None:
        raise Died

    with monkeypatch.context() as patched:
        patched.setattr(changes, "drop_quietly", die)
        with pytest.raises(Died):
            await give_back(deps, refund_id="r")

    again = await give_back(deps, refund_id="r")
    assert (again.replayed, again.credits_micro) == (True, 8 * MICRO)
    assert await left(deps) == {"g": 20}


async def test_a_worker_refunds_for_a_process_without_a_database(deps: Deps):
    await give(deps, 20)
    await use(deps, 8)
    await deps.drain.run(seconds_max=5)

    done = await deps.quota.refund("k", 3, user_id="user-1", now=hours(1))

    assert (done.amount, int(done.credits), done.note) == (3, 3, None)
    assert (await deps.quota.balance("user-1", now=hours(1))).credits == 15


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    price=st.sampled_from(["0.333333", "1", "0.000001", "2.5"]),
    amount=st.integers(1, 9),
    parts=st.lists(st.integers(1, 5), min_size=1, max_size=4),
)
async def test_parts_sum_to_the_whole(
    deps: Deps, apply_tiers: Any, price: str, amount: int, parts: list[int]
):
    tier = {"overdraft": True, "limits": {"*": {"max": "unlimited", "per": "month"}}}
    document = {"default_tier": "free", "features": {"image": {"price": price}}}
    await apply_tiers(deps, {**document, "tiers": {"free": tier}})
    key = str(uuid4())
    cost = (await deps.quota.consume("user-1", "image", amount, key=key, now=START)).cost

    done = [await give_back(deps, key, part) for part in parts]
    done.append(await give_back(deps, key))

    assert sum(one.amount for one in done) == amount
    assert sum(one.due_micro for one in done) == cost * MICRO
    assert sum(one.credits_micro for one in done) == cost * MICRO
