"""The admit script and the pure rule give the same answers, whatever they are asked."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quota.decision import FEATURE_NOT_IN_TIER, Decision, LimitState, Standing, decide, remaining_of
from quota.errors import KeyConflictError
from quota.period import Calendar, window_at
from quota.rules import Rules
from quota.values import AMOUNT_MAX, instant_ms, parse_user_id
from service.tiers import apply_rules, publish
from service.users import put_user
from worker.deps import Deps

START = datetime(2025, 3, 29, 22, 0, tzinfo=UTC)  # an hour before clocks go forward in Berlin
FEATURES = ("a", "b", "c")
CALENDAR = ("hour", "day", "week", "month", "year", "cycle", "lifetime")
WINDOWS = ("window:60", "window:5400")
PERIODS = (*CALENDAR, *WINDOWS)
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
documents = st.fixed_dictionaries(
    {
        "default_tier": st.just("t"),
        "features": st.dictionaries(st.sampled_from(FEATURES), price, max_size=3),
        "tiers": st.fixed_dictionaries(
            {
                "t": st.fixed_dictionaries(
                    {
                        "overdraft": st.booleans(),
                        "limits": st.dictionaries(
                            st.sampled_from([*FEATURES, "*"]), limits, max_size=3
                        ),
                    }
                )
            }
        ),
    }
)
step = st.fixed_dictionaries(
    {
        "verb": st.sampled_from(["consume", "consume", "check", "record"]),
        "feature": st.sampled_from(FEATURES),
        "amount": st.one_of(st.integers(1, 12), st.just(AMOUNT_MAX)),
        "key": st.one_of(st.none(), st.sampled_from(["k1", "k2", "k3"])),
        "format": st.sampled_from([None, "video", "text"]),
        "quality": st.sampled_from([None, "high"]),
        "minutes": st.sampled_from([0, 0, 1, 29, 60, 24 * 60, 40 * 24 * 60]),
        "before": st.sampled_from(["nothing", "nothing", "nothing", "apply", "forget"]),
    }
)


class Model:
    """One user, by the pure rules alone."""

    def __init__(self, rules: Rules, calendar: Calendar) -> None:
        self.rules = rules
        self.calendar = calendar
        self.credits = 0
        self.used: dict[tuple[str, str, int], int] = {}
        self.opened_ms: dict[tuple[str, str], int] = {}
        self.answers: dict[str, tuple[Any, Decision]] = {}

    def ask(self, verb: str, *, key: str, now_ms: int, **asked: Any) -> Decision:
        if verb != "check" and key in self.answers:
            payload, decision = self.answers[key]
            if payload != asked:
                raise KeyConflictError(key)
            return decision
        decision = self._decide(verb, key=key, now_ms=now_ms, **asked)
        if decision and verb != "check":
            self.answers[key] = (asked, decision)
            self.credits = decision.credits_micro
            for per in PERIODS:
                start_ms, _ = self._window(asked["feature"], per, now_ms)
                self.opened_ms[asked["feature"], per] = start_ms
                place = (asked["feature"], per, start_ms)
                self.used[place] = self.used.get(place, 0) + asked["amount"]
        return decision

    def _decide(
        self,
        verb: str,
        *,
        key: str,
        now_ms: int,
        feature: str,
        amount: int,
        format: str | None,
        quality: str | None,
    ) -> Decision:
        tier = self.rules.tiers["t"]
        cost = self.rules.cost("t", feature, amount=amount, format=format, quality=quality)
        limits = tier.limits_of(feature)
        if limits is None and verb != "record":
            return Decision(
                False, FEATURE_NOT_IN_TIER, feature, amount, cost, self.credits, (), now_ms, key
            )
        states = tuple(self._state(feature, one, now_ms) for one in limits or ())
        standing = Standing(states, self.credits, tier.overdraft)
        return decide(
            standing,
            feature=feature,
            amount=amount,
            cost=cost,
            key=key,
            now_ms=now_ms,
            take=verb != "check",
            forced=verb == "record",
        )

    def _state(self, feature: str, one: Any, now_ms: int) -> LimitState:
        start_ms, end_ms = self._window(feature, one.per, now_ms)
        used = self.used.get((feature, one.per, start_ms), 0)
        return LimitState(
            one.per, one.mode, used, one.max, remaining_of(one.max, used=used), end_ms
        )

    def _window(self, feature: str, per: str, now_ms: int) -> tuple[int, int | None]:
        if per in CALENDAR:
            return window_at(per, now_ms, self.calendar)
        length_ms = int(per.removeprefix("window:")) * 1000
        opened_ms = self.opened_ms.get((feature, per), -length_ms)
        start_ms = opened_ms if now_ms < opened_ms + length_ms else now_ms
        return start_ms, start_ms + length_ms


async def ask_redis(deps: Deps, user: str, step: dict[str, Any], now: datetime) -> Decision:
    arguments = {name: step[name] for name in ("key", "format", "quality")}
    if step["verb"] == "record":
        receipt = await deps.quota.record(
            user, step["feature"], step["amount"], now=now, **arguments
        )
        return receipt.decisions[0]
    verb = deps.quota.consume if step["verb"] == "consume" else deps.quota.check
    return await verb(user, step["feature"], step["amount"], now=now, **arguments)


def comparable(decision: Decision) -> dict[str, Any]:
    answer = decision.as_dict()
    for volatile in (
        "key",
        "replayed",
        "retry_after",
    ):  # a replay is the first answer, at another instant
        del answer[volatile]
    return {**answer, "credits_micro": decision.credits_micro}


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    document=documents,
    steps=st.lists(step, min_size=1, max_size=25),
    zone=st.sampled_from(["UTC", "Europe/Berlin", "Asia/Kathmandu"]),
)
async def test_the_script_and_the_pure_rule_answer_alike(
    deps: Deps, document: dict[str, Any], steps: list[dict[str, Any]], zone: str
) -> None:
    rules = await apply_rules(deps.database, Rules.from_document(document))
    await publish(deps.redis, deps.keys, rules)
    user, now = f"conformance-{next(_numbers)}", START
    await make_user(deps, user, rules, zone)
    model = Model(rules, Calendar(zone, instant_ms(START), 1))

    for number, given_step in enumerate(steps):
        one = {**given_step, "key": given_step["key"] or f"step-{number}"}
        key = one["key"]
        now += timedelta(minutes=one["minutes"])
        await meanwhile(deps, one["before"], user)
        asked = {name: one[name] for name in ("feature", "amount", "format", "quality")}
        try:
            expected = model.ask(one["verb"], key=key, now_ms=instant_ms(now), **asked)
        except (KeyConflictError, ValueError) as error:
            expected_error = type(error)
            try:
                answer = await ask_redis(deps, user, one, now)
            except expected_error:
                continue
            raise AssertionError(f"expected {expected_error}, got {answer}") from None
        try:
            answer = await ask_redis(deps, user, one, now)
        except ValueError:  # a record that no counter can hold
            assert one["verb"] == "record"
            assert not expected
            continue
        assert comparable(answer) == comparable(expected)


async def meanwhile(deps: Deps, what: str, user: str) -> None:
    """What must not change any answer: the worker applies, or Redis drops the user."""
    if what == "apply":
        await deps.drain.run(seconds_max=10)
    elif what == "forget":
        user_id = parse_user_id(user).id
        shard = deps.keys.shard_of(user_id)
        await deps.redis.delete(shard.user_of(user_id.hex), shard.grants_of(user_id.hex))


async def make_user(deps: Deps, user: str, rules: Rules, zone: str) -> None:
    async with deps.database.session() as session:
        await put_user(session, parse_user_id(user), rules, at=START, timezone=zone, anchor=START)
