"""The real stack and `InMemoryQuota` give the same answers, whatever they are asked, in whatever order.

The quota in memory is the pure functions and a few dictionaries; the stack is the same functions,
made atomic in Redis and set-based in PostgreSQL.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from itertools import count
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from quota.testing import InMemoryQuota
from quota.values import AMOUNT_MAX
from tests.integration.stacks import Memory, Real, step
from tests.integration.steps import (
    START,
    ZONES,
    asked,
    changing,
    deciding,
    documents,
    holding,
    paying,
)
from worker.deps import Deps

EXAMPLES = int(
    os.environ.get("CONFORMANCE_EXAMPLES", "25")
)  # of each test; thousands in a long run
_numbers = count()


class Run:
    """One user on both sides, and the clock."""

    def __init__(self, deps: Deps, document: dict[str, Any], zone: str) -> None:
        self.real = Real(deps)
        self.memory = Memory(InMemoryQuota(document))
        self.document = document
        self.user = f"conformance-{next(_numbers)}"
        self.zone = zone
        self.now = START

    async def start(self) -> None:
        await self.real.put_tiers(self.document, at=START)
        await self._both("set_user", timezone=self.zone, anchor=START)

    async def take(self, number: int, one: dict[str, Any]) -> None:
        # A millisecond each: of two grants made at once, which one pays is a matter of random ids.
        self.now += timedelta(minutes=one["minutes"] or 0, milliseconds=1)
        if one["minutes"] is None:
            self.now = self.memory.next_change(self.user, self.now)
        await self._meanwhile(one["before"])
        fields = asked(one, number, self.now)
        await self._both(one["verb"], **fields)

    async def finish(self) -> None:
        """Nothing is lost or double when everything was applied and Redis dropped the user."""
        await self._both("balance")
        await self.real.apply()
        await self._both("balance")
        await self.real.forget(self.user)
        await self._both("balance")
        self.now += timedelta(days=2)  # every hold is over, so that the next run finds none of ours
        await self.real.expire(self.now)
        await self._both("balance")

    async def _both(self, verb: str, **fields: Any) -> None:
        await step(self.real, self.memory, verb, self.user, now=self.now, **fields)

    async def _meanwhile(self, what: str) -> None:
        """What must not change any answer."""
        if what == "apply":
            await self.real.apply()
        elif what == "forget":
            await self.real.forget(self.user)
        elif what == "expire":
            await self.real.expire(self.now)


async def run(deps: Deps, document: dict[str, Any], steps: list[dict[str, Any]], zone: str) -> None:
    both = Run(deps, document, zone)
    await both.start()
    for number, one in enumerate(steps):
        await both.take(number, one)
    await both.finish()


Test = Callable[..., Any]


def conforming(steps: st.SearchStrategy[dict[str, Any]]) -> Callable[[Test], Test]:
    """A test of *steps* in every order that Hypothesis can think of."""

    def decorated(test: Test) -> Test:
        given_steps = given(
            document=documents,
            steps=st.lists(steps, min_size=1, max_size=20),
            zone=st.sampled_from(ZONES),
        )
        health = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
        bounds = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=health)
        found: Test = bounds(given_steps(test))
        return found

    return decorated


OVERFLOW_BEFORE_A_ROLL: dict[str, Any] = {
    "document": {
        "default_tier": "t",
        "tiers": {
            "t": {
                "limits": {
                    "a": [{"max": "unlimited", "per": "week"}],
                    "b": [{"max": 5, "per": "hour"}],
                }
            },
            "u": {"limits": {}},
        },
    },
    "steps": [
        {
            "verb": "consume",
            "minutes": 0,
            "before": "nothing",
            "call": {"key": None, "ago": None, "feature": "a", "amount": AMOUNT_MAX},
        },
        {
            "verb": "record",
            "minutes": 61,
            "before": "nothing",
            "call": {"key": "k1", "feature": {"a": 1, "b": 1}},
        },
    ],
    "zone": "UTC",
}


@example(**OVERFLOW_BEFORE_A_ROLL)
@conforming(deciding)
async def test_decisions_are_alike(
    deps: Deps, document: dict[str, Any], steps: list[dict[str, Any]], zone: str
) -> None:
    await run(deps, document, steps, zone)


@conforming(holding)
async def test_holds_are_alike(
    deps: Deps, document: dict[str, Any], steps: list[dict[str, Any]], zone: str
) -> None:
    await run(deps, document, steps, zone)


@conforming(paying)
async def test_credits_are_alike(
    deps: Deps, document: dict[str, Any], steps: list[dict[str, Any]], zone: str
) -> None:
    await run(deps, document, steps, zone)


@conforming(changing)
async def test_changes_of_the_tier_are_alike(
    deps: Deps, document: dict[str, Any], steps: list[dict[str, Any]], zone: str
) -> None:
    await run(deps, document, steps, zone)
