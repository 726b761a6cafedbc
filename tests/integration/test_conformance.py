"""The real stack and `InMemoryQuota` give the same answers, whatever they are asked, in whatever order.

The quota in memory is the pure functions and a few dictionaries; the stack is the same functions,
made atomic in Redis and set-based in PostgreSQL.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quota.testing import InMemoryQuota
from quota.values import AMOUNT_MAX
from tests.integration.stacks import Memory, Real, step
from worker.deps import Deps

START = datetime(2025, 3, 29, 22, 0, tzinfo=UTC)  # an hour before clocks go forward in Berlin
FEATURES = ("a", "b", "c")
CALENDAR = ("hour", "day", "week", "month", "year", "cycle", "lifetime")
PERIODS = (*CALENDAR, "window:60", "window:5400")
ZONES = ("UTC", "Europe/Berlin", "Asia/Kathmandu")
EXAMPLES = int(
    os.environ.get("CONFORMANCE_EXAMPLES", "40")
)  # of each test; thousands in a long run
_numbers = count()

limit = st.fixed_dictionaries(
    {
        "max": st.one_of(st.integers(0, 30), st.just("unlimited"), st.just(AMOUNT_MAX)),
        "per": st.sampled_from(PERIODS),
        "mode": st.sampled_from(["hard", "soft"]),
    }
)
limits = st.lists(limit, min_size=1, max_size=4, unique_by=lambda one: (one["per"], one["mode"]))
price = st.fixed_dictionaries(
    {"price": st.sampled_from(["0", "1", "0.333333333333", "2.5", "1000000"])},
    optional={"format": st.just({"video": "4"}), "quality": st.just({"high": "0.1"})},
)
prices = st.dictionaries(st.sampled_from(FEATURES), price, max_size=3)
allowance = st.fixed_dictionaries(
    {
        "amount": st.sampled_from(["20", "7.25", "0.000001"]),
        "every": st.sampled_from(["day", "week", "month"]),
    }
)
tier = st.fixed_dictionaries(
    {
        "overdraft": st.booleans(),
        "limits": st.dictionaries(st.sampled_from([*FEATURES, "*"]), limits, max_size=3),
    },
    optional={"credits": allowance, "features": prices},
)
documents = st.fixed_dictionaries(
    {
        "default_tier": st.just("t"),
        "features": prices,
        "tiers": st.fixed_dictionaries({"t": tier, "u": tier}),
    }
)

keys = st.sampled_from(["k1", "k2", "k3", "k4"])
amounts = st.integers(1, 12)
kind_of = {
    "format": st.sampled_from([None, "video", "text"]),
    "quality": st.sampled_from([None, "high"]),
}
feature = st.sampled_from(FEATURES)
late = st.sampled_from([None, None, None, -4, 5, 70, 26 * 60, 40 * 24 * 60])  # minutes ago


def call(verb: str, **fields: Any) -> st.SearchStrategy[dict[str, Any]]:
    """A step: the verb, the minutes that pass before it, what happens before it, and its fields."""
    return st.fixed_dictionaries(
        {
            "verb": st.just(verb),
            "minutes": st.sampled_from([0, 0, 0, 1, 29, 60, 24 * 60, 40 * 24 * 60]),
            "before": st.sampled_from(
                ["nothing", "nothing", "nothing", "apply", "forget", "expire"]
            ),
            "call": st.fixed_dictionaries(fields),
        }
    )


counted = {"feature": feature, "amount": st.one_of(amounts, st.just(AMOUNT_MAX)), **kind_of}
consumes = call("consume", key=keys | st.none(), ago=late, **counted)
checks = call("check", key=keys | st.none(), ago=late, **counted)
records = call("record", key=keys | st.none(), ago=late, **counted)
records_of_several = call(
    "record",
    key=keys | st.none(),
    feature=st.dictionaries(feature, amounts, min_size=1, max_size=3),
)
reserves = call(
    "reserve",
    key=keys,
    feature=feature,
    amount=amounts,
    ttl=st.sampled_from([1, 60, 3600, 86400]),
    **kind_of,
)
commits = call("commit", key=keys, amount=st.none() | st.integers(0, 15))
releases = call("release", key=keys)
refunds = call(
    "refund",
    key=keys,
    amount=st.none() | st.integers(1, 8),
    refund_id=st.sampled_from([None, None, "r1", "r2"]),
)
minutes_off = st.sampled_from([None, -90, 0, 30, 60, 24 * 60, 35 * 24 * 60])
grants = call(
    "grant",
    id=st.sampled_from(["g1", "g2", "g3", "g4"]),
    amount=st.sampled_from(["0", "3", "10.5", "100", "0.333333"]),
    priority=st.integers(0, 2),
    kind=st.sampled_from(["promo", "granted", "purchased"]),
    effective_at=minutes_off,
    expires_at=minutes_off,
    every=st.sampled_from([None, None, "day", "week", "month"]),
    min_rollover=st.sampled_from(["0", "0", "2"]),
    max_rollover=st.sampled_from(["0", "5", "1000"]),
)
voids = call("void", id=st.sampled_from(["g1", "g2", "g3", "g4"]))
resets = call("reset", preserve_overage=st.booleans())
tier_changes = call("set_user", tier=st.sampled_from(["t", "u", "gold"]))
balances = call("balance")

deciding = st.one_of(consumes, consumes, checks, records, records_of_several, balances)
holding = st.one_of(consumes, reserves, reserves, commits, releases, balances)
paying = st.one_of(
    consumes, records, reserves, commits, refunds, grants, grants, voids, resets, balances
)
changing = st.one_of(consumes, records, reserves, commits, releases, grants, tier_changes, balances)


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
        self.now += timedelta(minutes=one["minutes"], milliseconds=1)
        await self._meanwhile(one["before"])
        asked = dict(one["call"])
        if "key" in asked:
            asked["key"] = asked["key"] or f"step-{number}"
        ago = asked.pop("ago", None)
        if ago is not None:
            asked["occurred_at"] = self.now - timedelta(minutes=ago)
        for name in ("effective_at", "expires_at"):
            if asked.get(name) is not None:
                asked[name] = self.now + timedelta(minutes=asked[name])
        await self._both(one["verb"], **asked)

    async def finish(self) -> None:
        """Nothing is lost or double when everything was applied and Redis dropped the user."""
        await self._both("balance")
        await self.real.apply()
        await self._both("balance")
        await self.real.forget(self.user)
        await self._both("balance")

    async def _both(self, verb: str, **asked: Any) -> None:
        await step(self.real, self.memory, verb, self.user, now=self.now, **asked)

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
