"""Keys of Redis that somebody else wrote into: only what they belong to is touched, and it is loaded anew."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta

import pytest

from quota.keys import ShardKeys
from quota.values import parse_user_id
from worker.deps import Deps

YEAR_5138_MS = 1e14
DAMAGED = "user-1"
USER_ID = parse_user_id(DAMAGED).id
Damage = Callable[[Deps], Awaitable[object]]


def shard_of(deps: Deps) -> ShardKeys:
    return deps.keys.shard_of(USER_ID)


def hash_of(deps: Deps) -> str:
    return shard_of(deps).user_of(USER_ID.hex)


def neighbours(deps: Deps, count: int) -> list[str]:
    """Users of the same shard, whose calls go to Redis with those of the damaged one."""
    shard = shard_of(deps)
    names = (f"neighbour-{number}" for number in range(100_000))
    same = (name for name in names if deps.keys.shard_of(parse_user_id(name).id) is shard)
    return [next(same) for _ in range(count)]


async def replace_all(deps: Deps, keys: Sequence[str]) -> None:
    """Have lists where something else was."""
    await deps.redis.delete(*keys)
    for key in keys:
        await deps.redis.rpush(key, "x")


async def units(deps: Deps) -> int:
    """Units in PostgreSQL, after everything was applied."""
    await deps.drain.run(seconds_max=10)
    async with deps.database.connection() as connection:
        query = "SELECT coalesce(sum(amount), 0)::bigint FROM usage_logs"
        return int(await connection.fetchval(query))


async def test_a_hash_of_the_wrong_type_is_loaded_anew_and_touches_nobody_else(deps: Deps) -> None:
    others = neighbours(deps, 50)
    await asyncio.gather(*(deps.quota.consume(user, "event") for user in [DAMAGED, *others]))
    await replace_all(deps, [hash_of(deps)])

    decisions = await asyncio.gather(
        *(deps.quota.consume(user, "event") for user in [DAMAGED, *others] * 3)
    )

    assert {decision.code for decision in decisions} == {"ok"}
    assert (await deps.quota.check(DAMAGED, "event")).used == 4
    assert await units(deps) == 4 * 51


@pytest.mark.parametrize("what", ["hash", "profile", "token"])
@pytest.mark.parametrize("cold", [False, True])
async def test_a_key_of_a_user_of_the_wrong_type_is_as_if_it_were_not_there(
    deps: Deps, what: str, cold: bool
) -> None:
    shard = shard_of(deps)
    names = {"hash": shard.user_of, "profile": shard.grants_of, "token": shard.token_of}
    name = names[what](USER_ID.hex)
    await deps.quota.consume(DAMAGED, "event", 2)
    if cold:
        await deps.redis.delete(hash_of(deps))
    await replace_all(deps, [name])

    balance = await deps.quota.balance(DAMAGED)
    await replace_all(deps, [name])
    explanation = await deps.quota.explain(DAMAGED, "event")
    await replace_all(deps, [name])
    await deps.quota.roll(DAMAGED)
    await replace_all(deps, [name])
    reservation = await deps.quota.reserve(DAMAGED, "tokens", 5)
    await replace_all(deps, [name])
    settlement = await reservation.commit(3)

    assert balance.limits["event/day"].used == 2
    assert explanation.decision.allowed
    assert settlement.amount == 3
    assert await units(deps) == 5


async def test_what_fails_for_one_record_of_a_call_is_decided_for_the_others(deps: Deps) -> None:
    others = neighbours(deps, 20)
    await asyncio.gather(*(deps.quota.check(user, "tokens") for user in [DAMAGED, *others]))
    # A window of no number of seconds: the script stops at it, with nothing done.
    await deps.redis.hset(shard_of(deps).rules, "free/event", "sx,h,100;")

    broken = asyncio.gather(*(deps.quota.consume(DAMAGED, "event") for _ in range(3)))
    decisions = await asyncio.gather(*(deps.quota.consume(user, "tokens") for user in others * 3))

    assert {decision.code for decision in await broken} == {"unavailable"}
    assert {decision.code for decision in decisions} == {"ok"}
    assert await units(deps) == 60


# What each damage does to the keys of the shard and the hash of the user.
AFTER_THE_LOG: dict[str, Damage] = {
    "marks": lambda deps: replace_all(deps, shard_of(deps).marks),
    "due": lambda deps: replace_all(deps, [shard_of(deps).due]),
    "tallies": lambda deps: replace_all(deps, [shard_of(deps).tallies]),
    "hash": lambda deps: replace_all(deps, [hash_of(deps)]),
    "n is text": lambda deps: deps.redis.hset(hash_of(deps), "n", "x"),
    "n is at its end": lambda deps: deps.redis.hset(hash_of(deps), "n", 2**63 - 1),
    "p is text": lambda deps: deps.redis.hset(hash_of(deps), "p:event", "x"),
    "j is text": lambda deps: deps.redis.hset(hash_of(deps), "j", "x"),
    "w is text": lambda deps: deps.redis.hset(hash_of(deps), "w", "x"),
    "turn is text": lambda deps: deps.redis.hset(shard_of(deps).meta, "turn", "x"),
    "a tally is text": lambda deps: deps.redis.hset(shard_of(deps).tallies, "c0", "x"),
}


@pytest.mark.parametrize("name", AFTER_THE_LOG)
async def test_what_is_logged_is_answered_whatever_the_other_keys_are(
    deps: Deps, name: str
) -> None:
    await deps.quota.reserve(DAMAGED, "tokens", 1)
    await deps.quota.consume(DAMAGED, "event")
    damage = AFTER_THE_LOG[name]

    await damage(deps)
    decisions = [await deps.quota.consume(DAMAGED, "event") for _ in range(3)]
    await damage(deps)
    first = await deps.quota.consume(DAMAGED, "event", key="k")
    again = await deps.quota.consume(DAMAGED, "event", key="k")
    await damage(deps)
    hold = await deps.quota.reserve(DAMAGED, "unit", 2)
    held = await deps.quota.reserve(DAMAGED, "tokens", 2)
    await damage(deps)
    settlement = await held.commit()

    assert {decision.code for decision in [*decisions, first, again]} == {"ok"}
    assert (again.replayed, again.used) == (True, 5)
    assert hold.decision.code == "insufficient_credits"
    assert (settlement.status, settlement.amount) == ("committed", 2)
    assert await units(deps) == 5 + 2


@pytest.mark.parametrize("name", ["marks", "due", "tallies", "n is text", "hash"])
async def test_a_hold_that_expires_is_logged_once_whatever_the_other_keys_are(
    deps: Deps, name: str
) -> None:
    now = datetime.now(UTC)
    held = await deps.quota.reserve(DAMAGED, "event", 5, ttl=10, now=now)
    await AFTER_THE_LOG[name](deps)

    later = now + timedelta(seconds=20)
    decisions = [await deps.quota.consume(DAMAGED, "event", now=later) for _ in range(2)]
    settlement = await held.commit(now=later)

    assert [decision.used for decision in decisions] == [1, 2]
    assert (settlement.status, settlement.amount) == ("expired", 0)
    assert await units(deps) == 2
    async with deps.database.connection() as connection:
        quarantined = "SELECT count(*) FROM quarantined_records"
        assert await connection.fetchval(quarantined) == 0


async def test_a_ring_that_was_made_anew_expires_too(deps: Deps) -> None:
    shard = shard_of(deps)
    await deps.quota.consume(DAMAGED, "event")
    await replace_all(deps, shard.marks)

    await deps.quota.consume(DAMAGED, "event", key="k")

    [made] = [key for key in shard.marks if await deps.redis.type(key) == b"hash"]
    assert 0 < await deps.redis.pttl(made) < 3 * deps.settings.dedupe_seconds * 1000


@pytest.mark.parametrize(
    "text",
    ["inf", "-inf", "nan", "1e15", "0x7fffffff", " 5000000", "9e99", "2000000.5", "", "9" * 20],
)
async def test_credits_that_are_no_integer_are_never_spent(deps: Deps, text: str) -> None:
    await deps.quota.check(DAMAGED, "unit")
    await deps.redis.hset(hash_of(deps), "c", text)

    priced = await deps.quota.consume(DAMAGED, "unit")
    await deps.redis.hset(hash_of(deps), "c", text)
    free = await deps.quota.consume(DAMAGED, "event")

    assert (priced.code, priced.credits_micro) == ("insufficient_credits", 0)
    assert (free.code, free.credits_micro) == ("ok", 0)
    assert await deps.redis.hget(hash_of(deps), "c") == b"0"
    assert await units(deps) == 1


def counters(*numbers: float) -> bytes:
    return b"d,m|" + struct.pack("<4d", *numbers)


@pytest.mark.parametrize("field", ["f:event", "p:event"])
@pytest.mark.parametrize(
    "line",
    [
        counters(float("inf"), 3, float("inf"), 3),
        counters(float("nan"), 3, YEAR_5138_MS, 3),
        counters(1e18, 3, YEAR_5138_MS, 3),
        counters(-2, 3, YEAR_5138_MS, 3),
        counters(YEAR_5138_MS, float("inf"), YEAR_5138_MS, 3),
        counters(YEAR_5138_MS, float("nan"), YEAR_5138_MS, 3),
        counters(YEAR_5138_MS, 3, YEAR_5138_MS, -1),
        counters(YEAR_5138_MS, 1.5, YEAR_5138_MS, 3),
        counters(YEAR_5138_MS + 0.5, 3, YEAR_5138_MS, 3),
        counters(YEAR_5138_MS, 2.0**53, YEAR_5138_MS, 3),
    ],
)
async def test_counters_that_are_no_integers_are_loaded_anew(
    deps: Deps, field: str, line: bytes
) -> None:
    await deps.quota.consume(DAMAGED, "event", 2)
    await deps.redis.hset(hash_of(deps), field, line)

    decision = await deps.quota.consume(DAMAGED, "event")

    assert (decision.code, decision.used) == ("ok", 3)
    assert (await deps.quota.balance(DAMAGED)).limits["event/month"].used == 3
    assert await units(deps) == 3


HEADS = ["9" * 30, "1e999", "-1", "inf", "0x10", ""]


@pytest.mark.parametrize("valid_until", HEADS)
async def test_a_head_without_an_instant_is_loaded_anew(deps: Deps, valid_until: str) -> None:
    await deps.quota.consume(DAMAGED, "event", 2)
    head = (await deps.redis.hget(hash_of(deps), "h")).split(b",")
    head[1] = valid_until.encode()
    await deps.redis.hset(hash_of(deps), "h", b",".join(head))

    decision = await deps.quota.consume(DAMAGED, "event")

    assert (decision.code, decision.used) == ("ok", 3)


@pytest.mark.parametrize(
    "window", [";d,1,%s,0;", ";d,%s,4102444800000,0;", ";d,1,4102444800000,%s;"]
)
async def test_windows_past_every_calendar_are_loaded_anew(deps: Deps, window: str) -> None:
    await deps.quota.check(DAMAGED, "event")
    text = (window % ("9" * 400)) + ";m,1,4102444800000,0;"
    await deps.redis.hset(hash_of(deps), "w", text)

    decision = await deps.quota.consume(DAMAGED, "event")

    assert (decision.code, decision.used) == ("ok", 1)
    assert decision.resets_at is not None
    assert decision.resets_at.year < 2100


@pytest.mark.parametrize("field", ["h", "c", "w", "j", "o:hold", "f:tokens", "profile"])
@pytest.mark.parametrize("text", ["", "x", "\xff"])
async def test_a_user_whose_texts_nobody_can_read_is_loaded_anew_by_every_verb(
    deps: Deps, field: str, text: str
) -> None:
    async def damage() -> None:
        if field == "profile":
            await deps.redis.set(shard_of(deps).grants_of(USER_ID.hex), text.encode("latin-1"))
        else:
            await deps.redis.hset(hash_of(deps), field, text.encode("latin-1"))

    reservation = await deps.quota.reserve(DAMAGED, "tokens", 5, key="hold")

    await damage()
    balance = await deps.quota.balance(DAMAGED)
    await damage()
    explanation = await deps.quota.explain(DAMAGED, "tokens")
    await damage()
    await deps.quota.roll(DAMAGED)
    await damage()
    again = await deps.quota.reserve(DAMAGED, "tokens", 5, key="hold")
    await damage()
    settlement = await reservation.commit(3)

    assert balance.limits["tokens/lifetime"].used == 5
    assert (explanation.decision.allowed, again.decision.replayed) == (True, True)
    assert (settlement.status, settlement.amount) == ("committed", 3)
    assert await units(deps) == 3
