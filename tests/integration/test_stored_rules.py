"""Tiers go into PostgreSQL as rows, and come back as the rules they were."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from quota.errors import InvalidValueError
from quota.rules import Rules
from quota.values import AMOUNT_MAX
from service.tiers import apply_rules, stored_rules
from worker.deps import Deps
from worker.jobs import drain_log

ApplyTiers = Callable[[Deps, dict[str, Any]], Awaitable[Rules]]

EVERYTHING: dict[str, Any] = {
    "default_tier": "basic_1",
    "features": {
        "image": {
            "price": "0.000000000001",
            "format": {"video": "4", "ü \\ \" '": "999999999999999"},
            "quality": {"high": "2.500", "none": "0"},
            "on_outage": {"policy": "allow", "max": AMOUNT_MAX},
        },
        "sound": {"price": 1000},
        "free.thing": {"price": "0"},
        "unpriced": {"on_outage": "allow"},
    },
    "tiers": {
        "basic_1": {
            "credits": {"amount": "20.000001", "every": "week"},
            "overdraft": True,
            "limits": {
                "tokens": [
                    {"max": "unlimited", "per": "month", "mode": "soft"},
                    {"max": 0, "per": "window:300"},
                    {"max": AMOUNT_MAX, "per": "hour"},
                    {"max": 5, "per": "hour", "mode": "soft"},
                ],
                "*": {"max": 7, "per": "lifetime"},
            },
            "alerts": {"thresholds": []},
            "features": {"image": {"price": "1"}, "sound": {"price": "2", "format": {"a": "1.5"}}},
        },
        "z-9": {
            "alerts": {"thresholds": [1000, 1]},
            "on_outage": {"policy": "allow", "max": 7},
            "features": {
                "image": {"on_outage": "deny"},
                "sound": {"price": "3", "on_outage": "allow"},
            },
        },
    },
}


def content(rules: Rules) -> tuple[Any, ...]:
    return rules.default_tier, rules.tiers, rules.prices, rules.on_outage, rules.version


async def test_rules_come_back_from_postgresql_as_they_were(deps: Deps, apply_tiers: ApplyTiers):
    read = Rules.from_document(EVERYTHING)

    applied = await apply_tiers(deps, EVERYTHING)
    stored = await stored_rules(deps.database)

    assert stored is not None
    assert content(stored) == content(applied)
    assert content(stored)[:4] == content(read)[:4]
    assert stored.lines() == read.lines()


async def test_the_same_rules_again_are_no_new_version(deps: Deps, apply_tiers: ApplyTiers):
    first = await apply_tiers(deps, EVERYTHING)

    assert (await apply_tiers(deps, EVERYTHING)).version == first.version
    changed = {**EVERYTHING, "default_tier": "z-9"}
    assert (await apply_tiers(deps, changed)).version == first.version + 1
    assert (await apply_tiers(deps, EVERYTHING)).version == first.version + 2


async def test_the_order_of_tiers_comes_back_and_another_one_is_a_new_version(
    deps: Deps, apply_tiers: ApplyTiers
):
    limits = {"limits": {"*": {"max": 1, "per": "day"}}}
    first = await apply_tiers(deps, {"default_tier": "z", "tiers": {"z": limits, "a": limits}})
    stored = await stored_rules(deps.database)
    assert stored is not None
    assert [*stored.tiers] == ["z", "a"]

    other = await apply_tiers(deps, {"default_tier": "z", "tiers": {"a": limits, "z": limits}})

    stored = await stored_rules(deps.database)
    assert stored is not None
    assert [*stored.tiers] == ["a", "z"]
    assert other.version == first.version + 1


async def test_what_an_outage_allows_is_part_of_the_rules(deps: Deps, apply_tiers: ApplyTiers):
    first = await apply_tiers(deps, EVERYTHING)

    one_more = {**EVERYTHING["features"], "unpriced": {"on_outage": "deny"}}
    second = await apply_tiers(deps, {**EVERYTHING, "features": one_more})
    published = json.loads(await deps.redis.hget(deps.keys.shards[0].rules, "#document"))

    assert second.version == first.version + 1
    assert Rules.from_document(published["document"]).on_outage == second.on_outage


async def test_a_tier_that_users_are_on_can_not_go(deps: Deps, apply_tiers: ApplyTiers):
    await deps.quota.consume("user-1", "event")  # makes the user, on `free`
    before = await stored_rules(deps.database)
    assert before is not None

    with pytest.raises(InvalidValueError, match="1 users are on it") as caught:
        await apply_rules(deps.database, Rules.from_document(EVERYTHING))

    assert caught.value.field == "tiers.free"
    after = await stored_rules(deps.database)
    assert after is not None
    assert content(after) == content(before)


async def test_new_tiers_bind_the_next_decision(deps: Deps, apply_tiers: ApplyTiers):
    before = await deps.quota.consume("user-1", "event", 60)
    free: dict[str, Any] = {"limits": {"event": {"max": 50, "per": "day"}}}

    await apply_tiers(deps, {"default_tier": "free", "tiers": {"free": free}})
    after = await deps.quota.check("user-1", "event")

    assert before.code == "ok"
    assert (after.code, after.used, after.limit, after.remaining) == ("limit_exceeded", 60, 50, 0)
    assert (await deps.quota.check("user-1", "image")).code == "feature_not_in_tier"


async def test_when_rules_came_into_force_is_stored_and_published_with_them(
    deps: Deps, apply_tiers: ApplyTiers
):
    rules = await apply_tiers(deps, EVERYTHING)

    stored = await stored_rules(deps.database)
    documents = [await deps.redis.hget(shard.rules, "#document") for shard in deps.keys.shards]

    assert rules.applied_at_ms > 0
    assert stored is not None
    assert stored.applied_at_ms == rules.applied_at_ms
    assert {json.loads(text)["applied_at_ms"] for text in documents} == {rules.applied_at_ms}


async def test_rules_in_the_form_of_an_older_version_are_published_again(deps: Deps):
    await deps.quota.consume("u", "event")
    shard = deps.keys.shards[0]
    await deps.redis.hdel(shard.meta, "rules_form")
    await deps.redis.hset(shard.rules, "free", "overdraft")

    await drain_log({"deps": deps, "job_id": "tick"})

    assert await deps.redis.hget(shard.rules, "free") == b"-;-"
