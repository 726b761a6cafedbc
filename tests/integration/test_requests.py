"""What a process without a database asks of a worker: loads, refunds, explanations."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest

from quota import (
    Decision,
    InvalidValueError,
    Quota,
    QuotaUnavailableError,
    UnknownKeyError,
    UnknownUserError,
)
from quota.loading import RequestLoader
from quota.testing import InMemoryQuota
from quota.values import parse_user_id
from service.database import Database
from service.loading import DatabaseLoader
from worker.load_server import LoadServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from worker.deps import Deps

USER = parse_user_id("user-1")


@asynccontextmanager
async def served(deps: Deps, loader: DatabaseLoader | None = None) -> AsyncIterator[Quota]:
    """A client without a database, and a server that answers it."""
    server = LoadServer(deps.redis, deps.keys, loader or deps.loader, deps.metrics)
    serving = asyncio.create_task(server.serve())
    requests = RequestLoader(deps.redis, timeout_s=5)
    try:
        async with Quota(deps.redis, prefix=deps.keys.prefix, loader=requests) as quota:
            yield quota
    finally:
        serving.cancel()
        with suppress(asyncio.CancelledError):
            await serving


async def test_a_refund_is_made_by_a_worker_also_of_what_is_in_the_log(deps: Deps) -> None:
    async with served(deps) as quota:
        await quota.consume("user-1", "event", 5, key="k")

        first = await quota.refund("k", 2, user_id="user-1")
        rest = await quota.refund("k")
        decision = await quota.check("user-1", "event")

    assert (first.amount, rest.amount) == (2, 3)
    assert decision.used == 0


async def test_what_a_worker_refuses_is_raised_as_if_it_were_refused_here(deps: Deps) -> None:
    async with served(deps) as quota:
        await quota.record("user-1", {"event": 2, "tokens": 3}, key="two")

        with pytest.raises(UnknownKeyError, match="no record with the key 'never'"):
            await quota.refund("never", user_id="user-1")
        with pytest.raises(UnknownUserError, match="nobody"):
            await quota.refund("k", user_id="nobody")
        with pytest.raises(InvalidValueError) as refused:
            await quota.refund("two", 1, user_id="user-1")

    assert refused.value.field == "amount"


async def test_a_refund_that_no_worker_took_is_not_made_by_one_that_comes_later(deps: Deps) -> None:
    await deps.quota.consume("user-1", "event", 5, key="k")
    loader = RequestLoader(deps.redis, timeout_s=0.2, refund_timeout_s=0.2)
    with pytest.raises(QuotaUnavailableError, match="no worker answered"):
        await loader.refund(deps.keys, USER, "k", amount=None, refund_id=None, now_ms=0)

    assert await deps.redis.llen(deps.keys.loads) == 0


async def test_an_explanation_has_what_a_worker_says_and_is_given_without_one(deps: Deps) -> None:
    async with served(deps) as quota:
        await quota.consume("user-1", "event", 5)
        explained = await quota.explain("user-1", "event")
    loader = RequestLoader(deps.redis, timeout_s=0.2)
    async with Quota(deps.redis, prefix=deps.keys.prefix, loader=loader) as alone:
        without = await alone.explain("user-1", "event")

    assert explained.compared is not None
    assert [(one.name, one.cached, one.stored) for one in explained.compared] == [
        ("event/day", 5, 5), ("event/month", 5, 5), ("credits", 0, 0),
    ]  # fmt: skip
    assert (without.entries, without.compared) == (None, None)
    assert without.limits == explained.limits


async def test_who_only_looks_makes_no_user(deps: Deps) -> None:
    looks: list[Callable[[Quota], Awaitable[object]]] = [
        lambda quota: quota.balance("nobody"),
        lambda quota: quota.explain("nobody", "event"),
        lambda quota: quota.commit("nobody", "hold"),
        lambda quota: quota.release("nobody", "hold"),
        lambda quota: quota.roll("nobody"),
    ]

    async with served(deps) as quota:
        memory: Any = InMemoryQuota({"default_tier": "free", "tiers": {"free": {}}})
        for asked in (quota, deps.quota, memory):
            for look in looks:
                with pytest.raises(UnknownUserError, match="nobody"):
                    await look(asked)
        async with deps.database.connection() as connection:
            assert await connection.fetchval("SELECT count(*) FROM users") == 0
        # One who uses is made, also by a look and a use at once.
        answers = await asyncio.gather(
            quota.balance("user-1"), quota.check("user-1", "event"), return_exceptions=True
        )

    assert isinstance(answers[1], Decision)
    assert answers[1]


async def test_a_load_of_an_older_client_makes_the_user(deps: Deps) -> None:
    request = {"reply": "x", "shard": deps.keys.shard_of(USER.id).index, "users": ["user-1"]}
    async with served(deps):
        await deps.redis.lpush(deps.keys.loads, json.dumps({**request, "now_ms": 0}))
        answer = await deps.redis.blpop(["x"], timeout=10)

    assert json.loads(answer[1]) == {"unknown": []}


async def test_drift_is_seen(deps: Deps) -> None:
    await deps.quota.consume("user-1", "tokens", 5)
    shard = deps.keys.shard_of(USER.id)
    await deps.redis.hset(shard.user_of(USER.id.hex), "c", "7000000")

    explained = await deps.quota.explain("user-1", "tokens")

    assert explained.drifts
    assert explained.as_dict()["compared"] == {
        "tokens/lifetime": {"cached": 5, "stored": 5, "drift": 0},
        "credits": {"cached": "7", "stored": "0", "drift": "7"},
    }


async def test_what_is_no_request_harms_nobody(deps: Deps) -> None:
    texts = ["", "[]", "{}", '{"reply": "x"}', '{"reply": "x", "shard": 99, "users": ["u"]}']
    texts += ['{"reply": "x", "refund": {"user": 1}}', '{"reply": "x", "shard": 0, "users": [""]}']
    await deps.redis.lpush(deps.keys.loads, *texts)

    async with served(deps) as quota:
        assert await quota.consume("user-1", "tokens")
        answers = [json.loads(one) for one in await deps.redis.lrange("x", 0, -1)]
    await deps.redis.delete("x")

    assert len(answers) == 3
    assert all("not a request" in answer["error"] for answer in answers)


class SlowLoader(DatabaseLoader):
    """A real loader that takes its time, and says when it has begun."""

    def pause(self) -> None:
        self.begun, self.go_on = asyncio.Event(), asyncio.Event()

    async def load_users(self, *args: Any, **kwargs: Any) -> Any:
        self.begun.set()
        await self.go_on.wait()
        return await super().load_users(*args, **kwargs)


async def test_a_worker_that_stops_answers_what_it_took(deps: Deps) -> None:
    slow = SlowLoader(deps.database, deps.redis, auto_provision=True, dedupe_ms=60_000)
    slow.pause()
    await deps.loader.load_shard(deps.keys, deps.keys.shard_of(USER.id))
    server = LoadServer(deps.redis, deps.keys, slow, deps.metrics)
    serving = asyncio.create_task(server.serve())
    loader = RequestLoader(deps.redis, timeout_s=5)
    loading = asyncio.create_task(loader.load(deps.keys, USER, now_ms=0))
    await slow.begun.wait()

    serving.cancel()
    await asyncio.sleep(0)
    serving.cancel()  # as the worker does while it waits
    asyncio.get_running_loop().call_later(0.1, slow.go_on.set)

    assert await loading
    with pytest.raises(asyncio.CancelledError):
        await serving


async def test_without_postgresql_a_decision_that_needs_it_is_unavailable(deps: Deps) -> None:
    url = "postgresql+asyncpg://nobody@127.0.0.1:1/nothing"
    async with Database(url, pool_max=1) as nowhere:
        loader = DatabaseLoader(nowhere, deps.redis, auto_provision=True, dedupe_ms=60_000)
        async with Quota(deps.redis, prefix=deps.keys.prefix, loader=loader) as quota:
            decision = await quota.consume("user-1", "tokens")
            with pytest.raises(QuotaUnavailableError):
                await quota.refund("k", user_id="user-1")

    assert decision.code == "unavailable"


async def test_what_postgresql_refuses_is_unavailable_too(deps: Deps) -> None:
    await deps.quota.consume("user-2", "tokens")
    async with deps.database.connection() as connection:
        await connection.execute("ALTER TABLE usage_windows RENAME TO gone")

    decision = await deps.quota.consume("user-1", "tokens")

    assert decision.code == "unavailable"
