"""How a hold ended is known for ever: by PostgreSQL, and by the log until that is applied."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from quota.loading import RequestLoader
from quota.values import parse_user_id
from worker.deps import Deps
from worker.load_server import LoadServer

USER = parse_user_id("user-1")
START = datetime(2025, 3, 1, tzinfo=UTC)


async def settle(deps: Deps) -> None:
    while await deps.drain.run(seconds_max=5):
        pass


async def ended(deps: Deps, key: str = "h") -> Any:
    return await deps.loader.ended(deps.keys, USER, key)


@pytest.mark.parametrize("applied", ["nothing", "the reserve", "all"])
@pytest.mark.parametrize(
    ("how", "amount"), [("committed", 3), ("committed", 12), ("committed", 0), ("released", 0)]
)
async def test_the_end_is_told_wherever_it_lies(deps: Deps, applied: str, how: str, amount: int):
    await deps.quota.reserve("user-1", "tokens", 10, key="h", now=START)
    await deps.quota.reserve("user-1", "tokens", 10, key="other", now=START)
    if applied == "the reserve":
        await settle(deps)
    assert await ended(deps) is None  # it is open
    if how == "committed":
        await deps.quota.commit("user-1", "h", amount, now=START)
    else:
        await deps.quota.release("user-1", "h", now=START)
    if applied == "all":
        await settle(deps)

    assert await ended(deps) == {"status": how, "amount": amount, "cost_micro": 0}
    assert await ended(deps, "other") is None
    assert await ended(deps, "never") is None


@pytest.mark.parametrize("applied", [False, True])
async def test_an_expired_hold_kept_nothing(deps: Deps, applied: bool):
    await deps.quota.reserve("user-1", "tokens", 10, key="h", ttl=60, now=START)
    await deps.quota.roll("user-1", now=START + timedelta(seconds=60))
    if applied:
        await settle(deps)

    assert await ended(deps) == {"status": "expired", "amount": 0, "cost_micro": 0}


async def test_the_hold_of_another_user_is_none_of_this_one(deps: Deps):
    await deps.quota.reserve("user-2", "tokens", 10, key="h", now=START)
    await deps.quota.commit("user-2", "h", now=START)
    await settle(deps)

    assert await ended(deps) is None


async def test_a_worker_tells_it_to_a_process_without_a_database(deps: Deps):
    await deps.quota.reserve("user-1", "tokens", 10, key="h", now=START)
    await deps.quota.commit("user-1", "h", 4, now=START)
    server = LoadServer(deps.redis, deps.keys, deps.loader, deps.metrics)
    serving = asyncio.create_task(server.serve())
    loader = RequestLoader(deps.redis, timeout_s=5)
    try:
        known = await loader.ended(deps.keys, USER, "h")
        unknown = await loader.ended(deps.keys, USER, "never")
    finally:
        serving.cancel()
        with suppress(asyncio.CancelledError):
            await serving

    assert known == {"status": "committed", "amount": 4, "cost_micro": 0}
    assert unknown is None
