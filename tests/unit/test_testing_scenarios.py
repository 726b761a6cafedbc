"""The scenarios that the real stack is held to hold for `InMemoryQuota` too, all but alerts and statistics."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from cli.replay.compare import differences
from quota.errors import QuotaError
from quota.testing import InMemoryQuota
from quota.values import credits_of, parse_instant

FILES = sorted((Path(__file__).parents[1] / "scenarios").glob("*.json"))
NOT_IN_MEMORY = ("alert", "lifetime")

Answer = dict[str, Any]


class Replay:
    """One scenario, on a quota in memory."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self.now = parse_instant(document["steps"][0]["at"], field="at")
        self.quota = InMemoryQuota(document["tiers"], clock=lambda: self.now)
        self.used: dict[str, tuple[int, int]] = {}

    async def run(self) -> list[str]:
        for name, user in self.document["users"].items():
            await self.quota.set_user(name, **{"anchor": self.now, **user})
        found = []
        for number, step in enumerate(self.document["steps"], 1):
            asked = dict(step)
            self.now = parse_instant(asked.pop("at", self.now), field="at")
            expected = asked.pop("expect", {})
            got = await self._answer(asked)
            found += [f"step {number}: {one}" for one in differences(expected, got)]
        return found

    async def _answer(self, step: dict[str, Any]) -> Answer:
        act = _ACTS[step.pop("do")]
        user = step.pop("user", next(iter(self.document["users"])))
        try:
            return await act(self, user, **step)
        except QuotaError as error:
            return {"error": error.code}


Act = Callable[..., Awaitable[Answer]]


async def consume(replay: Replay, user: str, parallel: int | None = None, **call: Any) -> Answer:
    if parallel is None:
        return (await replay.quota.consume(user, **call)).as_dict()
    calls = (replay.quota.consume(user, **call) for _ in range(parallel))
    allowed = sum(decision.allowed for decision in await asyncio.gather(*calls))
    return {"allowed": allowed, "denied": parallel - allowed}


async def check(replay: Replay, user: str, **call: Any) -> Answer:
    return (await replay.quota.check(user, **call)).as_dict()


async def record(replay: Replay, user: str, **call: Any) -> Answer:
    feature = call.pop("features", None) or call.pop("feature")
    return (await replay.quota.record(user, feature, **call)).as_dict()


async def reserve(replay: Replay, user: str, hold: str, **call: Any) -> Answer:
    held = await replay.quota.reserve(user, key=hold, **call)
    return held.decision.as_dict()


async def commit(replay: Replay, user: str, hold: str, amount: int | None = None) -> Answer:
    return (await replay.quota.commit(user, hold, amount)).as_dict()


async def release(replay: Replay, user: str, hold: str) -> Answer:
    return (await replay.quota.release(user, hold)).as_dict()


async def refund(replay: Replay, user: str, **call: Any) -> Answer:
    return (await replay.quota.refund(user_id=user, **call)).as_dict()


async def grant(replay: Replay, user: str, **call: Any) -> Answer:
    given = await replay.quota.grant(user, **call)
    return {"id": given.name, "left": str(credits_of(given.left))}


async def void(replay: Replay, user: str, id: str) -> Answer:
    return {"voided": str(await replay.quota.void(user, id))}


async def reset(replay: Replay, user: str, preserve_overage: bool = False) -> Answer:
    await replay.quota.reset(user, preserve_overage=preserve_overage)
    return {}


async def set_tier(replay: Replay, user: str, tier: str) -> Answer:
    await replay.quota.set_user(user, tier=tier)
    return {}


async def balance(replay: Replay, user: str) -> Answer:
    return (await replay.quota.balance(user)).as_dict()


async def usage(replay: Replay, user: str, feature: str) -> Answer:
    member = next(iter(replay.quota._members.values()))
    assert user == member.user.text
    uses = [use for use in member.uses if use.feature == feature]
    used = sum(use.amount - use.refunded for use in uses)
    cost = sum(use.cost - use.refunded_micro for use in uses)
    return {"used": used, "credits": str(credits_of(cost))}


async def flush_redis(replay: Replay, user: str) -> Answer:
    """There is none to lose."""
    return {}


_ACTS: dict[str, Act] = {
    act.__name__: act
    for act in (
        consume, check, record, reserve, commit, release, refund,
        grant, void, reset, set_tier, balance, usage, flush_redis,
    )
}  # fmt: skip


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if not path.stem.startswith(NOT_IN_MEMORY)],
    ids=lambda path: path.stem,
)
def test_a_scenario_holds_in_memory(path: Path):
    replay = Replay(json.loads(path.read_text()))

    assert asyncio.run(replay.run()) == []
