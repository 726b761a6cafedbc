"""A state machine: everything that can happen to a user, in any order, on the real stack.

Hypothesis chooses the steps and makes a failing run short. Each step is asked of `InMemoryQuota` too and has
to be answered alike; after each, what must always hold is looked up, and once nothing is under way, the rest.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Coroutine
from datetime import timedelta
from itertools import count
from typing import Any, ClassVar

from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from quota.testing import InMemoryQuota
from quota.values import parse_user_id
from service.usage_log import read_entries
from tests.integration.stacks import Answer, Memory, Real, answer, imbalance, step
from tests.integration.steps import START, ZONES
from worker.deps import Deps

EXAMPLES = int(os.environ.get("MACHINE_EXAMPLES", "20"))
STEPS = int(os.environ.get("MACHINE_STEPS", "40"))  # at most, in a run
RUNS_MAX = 8  # until every rule has fired, which is as good as sure after the second
_numbers = count()

LIMITS = {
    "a": [
        {"max": 12, "per": "day"},
        {"max": 30, "per": "cycle"},
        {"max": 5, "per": "hour", "mode": "soft"},
    ],
    "b": [{"max": 6, "per": "window:5400"}, {"max": 40, "per": "lifetime"}],
}
TIERS: dict[str, Any] = {
    "default_tier": "free",
    "features": {
        "a": {"price": "0.333333333333", "format": {"video": "4"}},
        "b": {"price": "1.5", "quality": {"high": "2.5"}},
    },
    "tiers": {
        "free": {"credits": {"amount": "7.25", "every": "day"}, "limits": LIMITS},
        "pro": {
            "overdraft": True,
            "credits": {"amount": "20", "every": "week"},
            "limits": {**LIMITS, "a": {"max": 20, "per": "day"}, "*": {"max": 9, "per": "month"}},
            "features": {"b": {"price": "0.7"}},
        },
    },
}
# The same tiers with other limits and prices.
OTHER_LIMITS: dict[str, Any] = {
    **TIERS,
    "features": {"a": {"price": "0.25"}, "c": {"price": "0.1"}},
    "tiers": {
        "free": {
            "credits": {"amount": "7.25", "every": "day"},
            "limits": {"a": {"max": 8, "per": "day"}, "c": {"max": 5, "per": "week"}},
        },
        "pro": {
            "credits": {"amount": "20", "every": "week"},
            "limits": {"*": [{"max": 25, "per": "month"}, {"max": 15, "per": "window:60"}]},
        },
    },
}
# Other allowances. They come once in a run: for a user of whom nothing is written in between, two
# changes that come back to the first are none, and what was decided between them is not walked over.
OTHER_ALLOWANCES: dict[str, Any] = {
    **OTHER_LIMITS,
    "tiers": {
        "free": {"limits": OTHER_LIMITS["tiers"]["free"]["limits"]},
        "pro": {**OTHER_LIMITS["tiers"]["pro"], "credits": {"amount": "3", "every": "day"}},
    },
}

features = st.sampled_from(["a", "b", "c"])
amounts = st.integers(1, 6)
formats = st.sampled_from([None, "video"])
qualities = st.sampled_from([None, "high"])
places = st.integers(0, 50)  # in the list of what there is, modulo its length
minutes_off = st.sampled_from([None, None, 0, 45, 26 * 60])


# Counters of units keep rows of features that went back to nothing.
_USED = "SELECT feature_name, usage_count AS units FROM feature_usage WHERE user_id = $1 AND usage_count <> 0"
_LOGGED = """
    SELECT l.action, sum(l.amount - coalesce(r.amount, 0)) AS units
    FROM usage_logs l
    LEFT JOIN (SELECT usage_id, sum(amount) AS amount FROM usage_refunds WHERE user_id = $1 GROUP BY 1) r
           ON r.usage_id = l.id
    WHERE l.user_id = $1 GROUP BY 1 HAVING sum(l.amount - coalesce(r.amount, 0)) <> 0
"""
_TWICE = """
    SELECT count(*) FROM (
        SELECT FROM usage_logs WHERE user_id = $1 GROUP BY key, line HAVING count(*) > 1
    ) t
"""
_NEGATIVE = """
    SELECT (SELECT count(*) FROM credit_grants WHERE user_id = $1 AND left_micro < 0)
         + (SELECT count(*) FROM users WHERE id = $1 AND overage_micro < 0)
         + (SELECT count(*) FROM usage_windows WHERE user_id = $1 AND used < 0)
         + (SELECT count(*) FROM usage_counters WHERE user_id = $1
            AND least(hour_used, day_used, week_used, month_used, year_used, cycle_used, lifetime_used) < 0)
"""
RULES = (
    "consume", "consume_late", "record", "reserve", "commit", "release", "repeat",
    "repeat_what_redis_lost", "refund", "grant", "grant_between_overage_and_a_pause", "void", "reset",
    "set_user", "change_limits", "change_allowances",
    "pass_time", "pass_time_to_the_next_change", "work", "expire", "forget", "lose_redis", "balance", "explain",
)  # fmt: skip


class Machine(RuleBasedStateMachine):
    """One user, on both sides. *deps* and *loop* are set before it runs, which it does in a thread."""

    deps: ClassVar[Deps]
    loop: ClassVar[asyncio.AbstractEventLoop]
    fired: ClassVar[Counter[str]]

    def __init__(self) -> None:
        super().__init__()
        self.real = Real(self.deps)
        self.memory = Memory(InMemoryQuota(TIERS))
        self.user = f"machine-{next(_numbers)}"
        self.now = START
        self.names = count()
        self.calls: list[
            tuple[str, dict[str, Any]]
        ] = []  # those that were allowed, with their keys
        self.holds: list[str] = []
        self.grants: list[str] = []
        self.allowances_changed = False
        self.lost: list[tuple[str, dict[str, Any]]] = []  # whose keys Redis no longer remembers

    def do(self, verb: Coroutine[Any, Any, Answer]) -> Answer:
        """Run *verb* on the loop of the tests, for which this thread waits."""
        return asyncio.run_coroutine_threadsafe(verb, self.loop).result()

    def both(self, verb: str, **call: Any) -> Answer:
        """A step that is asked of both."""
        self.fired[verb] += 1
        self.now += timedelta(milliseconds=1)
        return self.do(step(self.real, self.memory, verb, self.user, now=self.now, **call))

    def counted(self, verb: str, **call: Any) -> None:
        """A step under a key of its own, which others may repeat, refund or end."""
        call["key"] = f"{verb}-{next(self.names)}"
        found = self.both(verb, **call)
        if found.get("allowed", found.get("recorded")):
            self.calls.append((verb, call))
            if verb == "reserve":
                self.holds.append(call["key"])
        if found.get("allowed"):
            for state in found["limits"]:
                if state["mode"] == "hard" and state["limit"] is not None:
                    assert state["used"] <= state["limit"], "a hard limit holds"

    @initialize(zone=st.sampled_from(ZONES), tier=st.sampled_from(["free", "pro"]))
    def begin(self, zone: str, tier: str) -> None:
        self.do(self.real.put_tiers(TIERS, at=START))
        self.both("set_user", timezone=zone, tier=tier, anchor=START)

    @rule(feature=features, amount=amounts, format=formats, quality=qualities)
    def consume(self, **call: Any) -> None:
        self.counted("consume", **call)

    @rule(feature=features, amount=amounts, ago=st.sampled_from([5, 50, 70, 25 * 60]))
    def consume_late(self, ago: int, **call: Any) -> None:
        self.fired["consume_late"] += 1
        self.counted("consume", occurred_at=self.now - timedelta(minutes=ago), **call)

    @rule(amounts=st.dictionaries(features, amounts, min_size=1))
    def record(self, amounts: dict[str, int]) -> None:
        self.counted("record", feature=amounts)

    @rule(
        feature=features,
        amount=amounts,
        format=formats,
        quality=qualities,
        ttl=st.sampled_from([30, 3600, 86_400]),
    )
    def reserve(self, **call: Any) -> None:
        self.counted("reserve", **call)

    @precondition(lambda self: self.holds)
    @rule(place=places, amount=st.none() | st.integers(0, 8))
    def commit(self, place: int, amount: int | None) -> None:
        self.both("commit", key=self.holds[place % len(self.holds)], amount=amount)

    @precondition(lambda self: self.holds)
    @rule()
    def commit_the_newest(self) -> None:
        self.both("commit", key=self.holds[-1], amount=None)

    @precondition(lambda self: self.holds)
    @rule(place=places)
    def release(self, place: int) -> None:
        self.both("release", key=self.holds[place % len(self.holds)])

    @precondition(lambda self: self.calls)
    @rule(place=places)
    def repeat(self, place: int) -> None:
        verb, call = self.calls[place % len(self.calls)]
        self.fired["repeat"] += 1
        assert self.both(verb, **call)["replayed"]

    @precondition(lambda self: self.lost)
    @rule(place=places)
    def repeat_what_redis_lost(self, place: int) -> None:
        """It is decided anew; PostgreSQL knows it, and what Redis counted again is mended.

        All but a reserve that came to nothing: its key may be used again, which is not so in memory.
        """
        self.fired["repeat_what_redis_lost"] += 1
        verb, call = self.lost[place % len(self.lost)]
        self.now += timedelta(milliseconds=1)
        if verb == "reserve" and self.memory.came_to_nothing(self.user, call["key"], self.now):
            return
        self.do(answer(lambda: getattr(self.real, verb)(self.user, now=self.now, **call)))
        self.do(self.real.apply())
        self.both("balance")

    @precondition(lambda self: self.calls or self.lost)
    @rule(place=places, amount=st.none() | st.integers(1, 4))
    def refund(self, place: int, amount: int | None) -> None:
        calls = [*self.calls, *self.lost]
        self.both("refund", key=calls[place % len(calls)][1]["key"], amount=amount)

    @rule(
        amount=st.sampled_from(["0.1", "3", "10.5", "0.333333"]),
        priority=st.integers(0, 2),
        kind=st.sampled_from(["promo", "granted", "purchased"]),
        starts=minutes_off,
        lasts=st.sampled_from([None, None, 30, 25 * 60]),
        every=st.sampled_from([None, None, None, "day", "week"]),
        max_rollover=st.sampled_from(["0", "2", "50"]),
        min_rollover=st.sampled_from(["0", "0", "2"]),
    )
    def grant(self, starts: int | None, lasts: int | None, **call: Any) -> None:
        call["id"] = f"g{len(self.grants)}"
        begins = self.now + timedelta(minutes=starts or 0, milliseconds=1)
        call["effective_at"] = None if starts is None else begins
        call["expires_at"] = None if lasts is None else begins + timedelta(minutes=lasts)
        if self.both("grant", **call) is None:
            self.grants.append(call["id"])

    @rule(amount=amounts, lasts=st.sampled_from([1, 30]))
    def grant_between_overage_and_a_pause(self, amount: int, lasts: int) -> None:
        """What it repays stays repaid when it is over, though nobody has looked in between."""
        self.fired["grant_between_overage_and_a_pause"] += 1
        self.counted("record", feature={"a": amount, "b": amount})
        self.do(self.real.apply())
        name, expires_at = f"g{len(self.grants)}", self.now + timedelta(minutes=lasts)
        self.both("grant", id=name, amount="3", expires_at=expires_at)
        self.grants.append(name)
        self.now += timedelta(minutes=31)
        self.both("balance")

    @precondition(lambda self: self.grants)
    @rule(place=places)
    def void(self, place: int) -> None:
        self.both("void", id=self.grants[place % len(self.grants)])

    @rule(preserve_overage=st.booleans())
    def reset(self, *, preserve_overage: bool) -> None:
        self.both("reset", preserve_overage=preserve_overage)

    @rule(tier=st.sampled_from(["free", "pro"]))
    def change_tier(self, tier: str) -> None:
        self.both("set_user", tier=tier)

    @precondition(lambda self: not self.allowances_changed)
    @rule(limits=st.sampled_from(["limits as they were", "other limits"]))
    def change_limits(self, limits: str) -> None:
        self.fired["change_limits"] += 1
        self.both("apply_tiers", document=OTHER_LIMITS if limits == "other limits" else TIERS)

    @precondition(lambda self: not self.allowances_changed)
    @rule()
    def change_allowances(self) -> None:
        self.fired["change_allowances"] += 1
        self.allowances_changed = True
        self.both("apply_tiers", document=OTHER_ALLOWANCES)

    @rule(minutes=st.sampled_from([1, 20, 61, 5 * 60, 24 * 60, 9 * 24 * 60]))
    def pass_time(self, minutes: int) -> None:
        self.fired["pass_time"] += 1
        self.now += timedelta(minutes=minutes)

    @rule()
    def pass_time_to_the_next_change(self) -> None:
        """What is asked next is asked at the very instant at which a hold ends, or a grant begins, recurs or ends."""
        self.fired["pass_time_to_the_next_change"] += 1
        self.now = self.memory.next_change(self.user, self.now + timedelta(milliseconds=1))
        self.now -= timedelta(milliseconds=1)

    @rule()
    def work(self) -> None:
        self.fired["work"] += 1
        self.do(self.real.apply())
        self.do(self._quiet())

    @rule()
    def expire(self) -> None:
        self.fired["expire"] += 1
        self.do(self.real.expire(self.now))

    @rule()
    def forget(self) -> None:
        self.fired["forget"] += 1
        self.do(self.real.forget(self.user))

    @rule()
    def lose_redis(self) -> None:
        self.fired["lose_redis"] += 1
        self.do(self.real.lose_redis())
        self.lost += self.calls
        self.calls, self.holds = [], []
        self.both("balance")

    @rule()
    def balance(self) -> None:
        found = self.both("balance")
        assert all(state["used"] >= 0 for state in found["limits"].values())
        assert all(left >= 0 for _, _, left, _ in found["grants"])

    @rule(feature=features)
    def explain(self, feature: str) -> None:
        """It also says that Redis is what PostgreSQL and the log come to."""
        self.both("explain", feature=feature)

    @invariant()
    def admitted_is_applied_and_pending(self) -> None:
        self.do(self._nothing_is_lost())

    def teardown(self) -> None:
        """Quiescence: after everything, what Redis has is what PostgreSQL has."""
        self.do(self.real.apply())
        self.both("balance")
        self.do(self.real.forget(self.user))
        self.both("balance")
        self.do(self._quiet())
        self.now += timedelta(days=2)  # every hold is over, so that the next run finds none of ours
        self.do(self.real.expire(self.now))

    async def _nothing_is_lost(self) -> None:
        """Every line that was ever admitted is applied, or waits in the log, and none is both.

        Redis counts the lines that it logs; after a loss it begins with those that were applied.
        """
        deps = self.deps
        async with deps.database.connection() as connection:
            rows = await connection.fetch("SELECT * FROM usage_shards")
        for row in rows:
            shard = deps.keys.shards[row["shard"]]
            admitted = await deps.redis.hget(shard.tallies, "lines")
            if admitted is not None:
                position = row["last_entry_id"]
                pending = await read_entries(deps.redis, shard, after=position, lines_max=1_000_000)
                assert int(admitted) == row["lines_applied"] + len(pending.lines)

    async def _quiet(self) -> None:
        """What holds once everything was applied."""
        assert await imbalance(self.deps, self.user, now=self.now) == 0
        user_id, expected = parse_user_id(self.user).id, self._used_in_memory()
        async with self.deps.database.connection() as connection:
            used = await connection.fetch(_USED, user_id)
            assert {row["feature_name"]: row["units"] for row in used} == expected
            logged = await connection.fetch(_LOGGED, user_id)
            assert {row["action"]: row["units"] for row in logged} == expected
            assert await connection.fetchval(_TWICE, user_id) == 0
            assert await connection.fetchval(_NEGATIVE, user_id) == 0

    def _used_in_memory(self) -> dict[str, int]:
        """Units by feature, without what is only held."""
        member = self.memory.quota._members[parse_user_id(self.user).id]
        held = {
            id(given.uses[0])
            for given in member.answers.values()
            if given.hold is not None and given.hold.status == "open"
        }
        units: Counter[str] = Counter()
        for use in member.uses:
            if id(use) not in held:
                units[use.feature] += use.amount - use.refunded
        return dict(+units)


async def test_everything_in_any_order(deps: Deps):
    class Prepared(Machine):
        """The machine on this test's stack."""

    Prepared.deps, Prepared.loop = deps, asyncio.get_running_loop()
    Prepared.fired = Counter()
    bounds = settings(
        max_examples=EXAMPLES,
        stateful_step_count=STEPS,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )

    for run in range(RUNS_MAX):
        # Where Hypothesis derandomizes, as it does in CI, each run would be the first one again.
        machine = seed(run)(Prepared) if run else Prepared
        await asyncio.to_thread(run_state_machine_as_test, machine, settings=bounds)
        if set(RULES) <= set(Prepared.fired):
            break

    assert {name for name in RULES if not Prepared.fired[name]} == set(), "every rule has fired"
