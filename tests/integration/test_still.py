"""A user stands still: out of Redis, kept out, and all that was admitted of it applied."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from quota.errors import QuotaUnavailableError
from quota.values import parse_user_id
from service import still
from service.database import Database
from service.settings import Settings
from service.staleness import drop_stale_users
from service.still import STILL, log_settled, standing_still
from worker.deps import Deps

USER = parse_user_id("user-1")


def other_of_the_shard(deps: Deps) -> str:
    """Another user whose usage is in the same log."""
    shard = deps.keys.shard_of(USER.id)
    names = (f"other-{number}" for number in range(1000))
    return next(name for name in names if deps.keys.shard_of(parse_user_id(name).id) is shard)


def stand_still(deps: Deps, *, settles: bool = True, wait_s: float = 5.0) -> Any:
    async def settle() -> None:
        await deps.drain.run(seconds_max=5)

    return standing_still(
        deps.database,
        deps.redis,
        deps.keys,
        USER,
        settle=settle if settles else None,
        wait_s=wait_s,
    )


async def applied(deps: Deps, feature: str = "tokens") -> int:
    async with deps.database.connection() as connection:
        used = await connection.fetchval(
            "SELECT usage_count FROM feature_usage WHERE user_id = $1 AND feature_name = $2",
            USER.id, feature,
        )  # fmt: skip
    return used or 0


async def token(deps: Deps) -> bytes | None:
    found: bytes | None = await deps.redis.get(deps.keys.shard_of(USER.id).token_of(USER.id.hex))
    return found


async def in_redis(deps: Deps) -> bool:
    return bool(await deps.redis.exists(deps.keys.shard_of(USER.id).user_of(USER.id.hex)))


def record_before_the_freeze(deps: Deps, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the user use 7 units between the first look at the log and the freeze."""
    frozen = still._Stillness._freeze

    async def freeze_late(self: Any, *, until: float) -> None:
        await deps.quota.record("user-1", "tokens", 7)
        await frozen(self, until=until)

    monkeypatch.setattr(still._Stillness, "_freeze", freeze_late)


async def test_what_was_admitted_is_applied_before_the_block(deps: Deps):
    await deps.quota.record("user-1", "tokens", 5)

    async with stand_still(deps):
        assert await applied(deps) == 5
        assert not await in_redis(deps)

    assert (await deps.quota.check("user-1", "tokens")).used == 5


async def test_a_user_that_nobody_knows_can_stand_still(deps: Deps):
    async with stand_still(deps):
        assert (await token(deps) or b"").startswith(STILL.encode())

    assert await token(deps) is None


async def test_a_decision_waits_and_sees_what_the_block_made(deps: Deps):
    await deps.quota.record("user-1", "tokens", 5)
    async with stand_still(deps):
        decision = asyncio.create_task(deps.quota.consume("user-1", "tokens", 1))
        # It finds nobody in Redis, and a token that is not a loader's.
        assert not (await asyncio.wait([decision], timeout=0.05))[0]
        async with deps.database.connection() as connection:
            await connection.execute("UPDATE usage_counters SET lifetime_used = 100")

    assert (await decision).used == 101


async def test_a_load_that_is_under_way_does_not_put_the_user_back(deps: Deps):
    await deps.quota.record("user-1", "tokens", 5)
    shard = deps.keys.shard_of(USER.id)
    await deps.redis.set(shard.token_of(USER.id.hex), "a loader's", px=5000)

    async with stand_still(deps):
        assert (await token(deps) or b"").startswith(STILL.encode())


async def test_a_user_that_is_dropped_as_changed_goes_on_standing_still(deps: Deps):
    async with stand_still(deps):
        async with deps.database.connection() as connection:
            await connection.execute("INSERT INTO stale_users (user_id) VALUES ($1)", USER.id)
        assert await drop_stale_users(deps.database, deps.redis, deps.keys) == 1

        assert (await token(deps) or b"").startswith(STILL.encode())


async def test_of_two_at_once_the_second_waits_for_the_first(deps: Deps):
    order: list[str] = []
    first_is_in, first_may_go = asyncio.Event(), asyncio.Event()

    async def first() -> None:
        async with stand_still(deps):
            first_is_in.set()
            await first_may_go.wait()
            order.append("first")

    async def second() -> None:
        await first_is_in.wait()
        async with stand_still(deps):
            order.append("second")

    async with asyncio.TaskGroup() as group:
        group.create_task(first())
        waiting = group.create_task(second())
        await first_is_in.wait()
        assert not (await asyncio.wait([waiting], timeout=0.05))[0]
        first_may_go.set()

    assert order == ["first", "second"]


async def test_one_that_does_not_come_to_its_turn_says_so_and_leaves_the_other_alone(deps: Deps):
    async with stand_still(deps):
        held = await token(deps)
        with pytest.raises(QuotaUnavailableError, match="another change"):
            async with stand_still(deps, wait_s=0.1):
                pytest.fail("two at once")

        assert await token(deps) == held


async def test_the_token_of_a_process_that_died_expires(deps: Deps):
    shard = deps.keys.shard_of(USER.id)
    await deps.redis.set(shard.token_of(USER.id.hex), STILL + "of the dead", px=300)

    async with stand_still(deps):
        assert await token(deps) != (STILL + "of the dead").encode()


async def test_the_token_has_a_time_to_live(deps: Deps):
    async with stand_still(deps):
        left = await deps.redis.pttl(deps.keys.shard_of(USER.id).token_of(USER.id.hex))

    assert 0 < left <= still.TOKEN_MS <= 5_000


async def expires_in(deps: Deps) -> int:
    found: int = await deps.redis.pttl(deps.keys.shard_of(USER.id).token_of(USER.id.hex))
    return found


async def set_expiry(deps: Deps, ms: int) -> None:
    """Have the token expire in *ms*; 0 takes it away."""
    assert await deps.redis.pexpire(deps.keys.shard_of(USER.id).token_of(USER.id.hex), ms)


async def test_the_token_is_renewed_for_as_long_as_its_holder_lives(
    deps: Deps, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(still, "RENEW_S", 0.01)
    async with stand_still(deps):
        await set_expiry(deps, 4_000)
        async with asyncio.timeout(4):
            while await expires_in(deps) <= 4_000:
                pass

    assert await token(deps) is None


async def test_the_token_is_renewed_after_the_wait(deps: Deps, monkeypatch: pytest.MonkeyPatch):
    async def settle() -> None:
        await deps.drain.run(seconds_max=5)
        await set_expiry(deps, 2_000)

    monkeypatch.setattr(still, "RENEW_S", 60.0)
    record_before_the_freeze(deps, monkeypatch)
    async with standing_still(deps.database, deps.redis, deps.keys, USER, settle=settle):
        assert await expires_in(deps) > 2_000


async def test_a_token_that_is_gone_ends_the_block(deps: Deps, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(still, "RENEW_S", 0.01)
    with pytest.raises(QuotaUnavailableError, match="lost"):  # noqa: PT012
        async with stand_still(deps):
            await set_expiry(deps, 0)
            await asyncio.Event().wait()


async def test_a_token_of_another_by_now_is_left_to_it(deps: Deps, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(still, "RENEW_S", 0.01)
    shard = deps.keys.shard_of(USER.id)
    with pytest.raises(QuotaUnavailableError, match="lost"):  # noqa: PT012
        async with stand_still(deps):
            await deps.redis.set(shard.token_of(USER.id.hex), "a loader's", px=3_000)
            await asyncio.Event().wait()

    assert await token(deps) == b"a loader's"
    assert await expires_in(deps) <= 3_000


async def test_a_token_that_can_not_be_renewed_ends_the_block(
    deps: Deps, monkeypatch: pytest.MonkeyPatch
):
    async def refuse(*_: Any) -> int:
        raise RedisConnectionError("gone")

    monkeypatch.setattr(still, "RENEW_S", 0.01)
    monkeypatch.setattr(still, "TOKEN_MS", 500)
    with pytest.raises(QuotaUnavailableError, match="lost"):  # noqa: PT012
        async with stand_still(deps):
            monkeypatch.setattr(still._Stillness, "_call", refuse)
            await asyncio.Event().wait()


async def test_before_a_commit_it_is_confirmed_that_the_user_stands_still(
    deps: Deps, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(still, "RENEW_S", 60.0)
    async with stand_still(deps) as confirm:
        await set_expiry(deps, 2_000)
        await confirm()
        assert await expires_in(deps) > 2_000
        await set_expiry(deps, 0)
        with pytest.raises(QuotaUnavailableError, match="lost"):
            await confirm()


async def test_a_postgresql_that_does_not_answer_is_not_waited_for(
    deps: Deps, settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(still, "_SLACK_S", 0.1)
    async with (
        Database(settings.sqlalchemy_url, pool_max=1) as database,
        database.connection(),
    ):  # the only one
        with pytest.raises(QuotaUnavailableError, match="stand still within"):
            async with standing_still(
                database, deps.redis, deps.keys, USER, settle=None, wait_s=0.1
            ):
                pytest.fail("it was not seen what is applied")

    assert await token(deps) is None


async def test_without_a_worker_it_says_that_one_has_to_run_and_lets_the_user_go(deps: Deps):
    await deps.quota.record("user-1", "tokens", 5)

    with pytest.raises(QuotaUnavailableError, match="is a worker running"):
        async with stand_still(deps, settles=False, wait_s=0.2):
            pytest.fail("it is not applied")

    assert await token(deps) is None
    assert (await deps.quota.check("user-1", "tokens")).used == 5


async def test_it_waits_for_a_worker_that_applies_the_log(deps: Deps):
    await deps.quota.record("user-1", "tokens", 5)
    entered = asyncio.Event()

    async def stand() -> int:
        async with stand_still(deps, settles=False):
            entered.set()
            return await applied(deps)

    standing = asyncio.create_task(stand())
    assert not (await asyncio.wait([standing], timeout=0.05))[0]
    assert not entered.is_set()
    await deps.drain.run(seconds_max=5)

    assert await standing == 5


async def test_what_others_have_in_the_log_is_not_waited_for_longer_than_half_the_time(deps: Deps):
    await deps.quota.record(other_of_the_shard(deps), "tokens", 5)

    async with stand_still(deps, settles=False, wait_s=0.2):
        assert await applied(deps) == 0


async def test_a_block_that_fails_lets_the_user_go(deps: Deps):
    with pytest.raises(KeyError):
        async with stand_still(deps):
            raise KeyError("a fault")

    assert await token(deps) is None


async def test_a_block_that_takes_too_long_is_given_up(deps: Deps, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(still, "BLOCK_S_MAX", 0.05)

    with pytest.raises(QuotaUnavailableError, match="given up"):
        async with stand_still(deps):
            await asyncio.Event().wait()

    assert await token(deps) is None


async def test_a_token_that_redis_lost_is_noticed_before_the_block(
    deps: Deps, monkeypatch: pytest.MonkeyPatch
):
    async def settle() -> None:
        await deps.drain.run(seconds_max=5)
        await deps.redis.unlink(deps.keys.shard_of(USER.id).token_of(USER.id.hex))

    record_before_the_freeze(deps, monkeypatch)
    with pytest.raises(QuotaUnavailableError, match="lost"):
        async with standing_still(deps.database, deps.redis, deps.keys, USER, settle=settle):
            pytest.fail("it could be loaded")


async def test_what_is_admitted_just_before_the_freeze_is_applied_too(
    deps: Deps, monkeypatch: pytest.MonkeyPatch
):
    record_before_the_freeze(deps, monkeypatch)
    async with stand_still(deps):
        assert await applied(deps) == 7


async def test_a_redis_that_is_gone_at_the_end_does_not_make_a_failure_of_the_change(
    deps: Deps, monkeypatch: pytest.MonkeyPatch
):
    async def refuse(*_: Any) -> int:
        raise RedisConnectionError("gone")

    async with stand_still(deps):
        monkeypatch.setattr(still._Stillness, "_call", refuse)

    assert await token(deps) is not None  # until it expires


async def test_a_redis_that_is_gone_at_the_start_is_unavailable(
    deps: Deps, monkeypatch: pytest.MonkeyPatch
):
    async def refuse(*_: Any) -> int:
        raise RedisConnectionError("gone")

    monkeypatch.setattr(still._Stillness, "_call", refuse)
    with pytest.raises(QuotaUnavailableError, match="gone"):
        async with stand_still(deps):
            pytest.fail("it does not stand still")


async def test_the_log_is_settled_when_all_that_it_held_is_applied(deps: Deps):
    for number in range(8):
        await deps.quota.record(f"user-{number}", "tokens", 1)

    async def settle() -> None:
        await deps.drain.run(seconds_max=5)

    assert not await log_settled(deps.database, deps.redis, deps.keys, settle=None, wait_s=0.05)
    assert await log_settled(deps.database, deps.redis, deps.keys, settle=settle)
    assert await applied(deps) == 1
