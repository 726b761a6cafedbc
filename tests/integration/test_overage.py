"""Which grants repay overage, where Redis and PostgreSQL each work it out."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

from quota.rules import Rules
from quota.values import MICRO, parse_user_id
from service.grants import add_grant
from service.staleness import drop_stale_users
from service.tiers import stored_rules
from worker.deps import Deps

START = datetime(2025, 3, 1, tzinfo=UTC)
USER = parse_user_id("user-1")


def hours(number: int) -> datetime:
    return START + timedelta(hours=number)


async def give(deps: Deps, credits: int, *, name: str, effective: int, expires: int) -> None:
    rules = await stored_rules(deps.database)
    assert isinstance(rules, Rules)
    async with deps.database.session() as session:
        await add_grant(
            session,
            USER,
            rules,
            amount_micro=credits * MICRO,
            at=START,
            name=name,
            effective_at=hours(effective),
            expires_at=hours(expires),
        )
    await drop_stale_users(deps.database, deps.redis, deps.keys, user_id=USER.id)


async def load_anew(deps: Deps) -> None:
    """Apply what is in the log, and let Redis forget the user, as after a week without use."""
    await deps.drain.run(seconds_max=30)
    shard = deps.keys.shard_of(USER.id)
    await deps.redis.unlink(shard.user_of(USER.id.hex), shard.grants_of(USER.id.hex))


async def stored(deps: Deps) -> tuple[int, dict[str, int]]:
    """The overage, and what is left of each grant, in whole credits."""
    await deps.drain.run(seconds_max=30)
    async with deps.database.connection() as connection:
        overage = await connection.fetchval(
            "SELECT overage_micro FROM users WHERE id = $1", USER.id
        )
        grants = await connection.fetch("SELECT name, left_micro FROM credit_grants")
    return overage // MICRO, {row["name"]: row["left_micro"] // MICRO for row in grants}


async def test_a_grant_that_was_over_before_the_overage_does_not_repay_it(deps: Deps):
    await give(deps, 60, name="over", effective=0, expires=1)
    await deps.quota.record("user-1", "image", 20, now=hours(2))
    await load_anew(deps)

    balance = await deps.quota.balance("user-1", now=hours(3))
    await deps.quota.record("user-1", "image", 5, now=hours(4))

    assert (balance.credits, balance.overage) == (Decimal(0), Decimal(20))
    assert await stored(deps) == (25, {"over": 60})


async def test_a_grant_that_came_and_went_after_the_overage_has_repaid_it(deps: Deps):
    await give(deps, 15, name="passing", effective=3, expires=4)
    await deps.quota.record("user-1", "image", 20, now=hours(2))
    await load_anew(deps)

    balance = await deps.quota.balance("user-1", now=hours(5))
    await deps.quota.record("user-1", "image", 1, now=hours(6))

    assert (balance.credits, balance.overage) == (Decimal(0), Decimal(5))
    assert await stored(deps) == (6, {"passing": 0})


async def test_a_loaded_user_and_one_that_stayed_agree_on_the_overage(deps: Deps):
    await give(deps, 5, name="first", effective=0, expires=2)
    await give(deps, 7, name="second", effective=3, expires=9)
    for hour, amount in ((0, 4), (1, 4), (2, 2), (4, 1), (5, 9)):
        await deps.quota.record("user-1", "image", amount, now=hours(hour))

    stayed = await deps.quota.balance("user-1", now=hours(6))
    await load_anew(deps)
    loaded = await deps.quota.balance("user-1", now=hours(6))

    assert stayed.as_dict() == loaded.as_dict()
    # 8 on 5 leaves 3, and 2 more; of 7 those 5 and 1, of 9 the last credit: 8 remain.
    assert (loaded.overage, await stored(deps)) == (Decimal(8), (8, {"first": 0, "second": 0}))
