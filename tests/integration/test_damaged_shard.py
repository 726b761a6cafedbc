"""Keys of a shard that are damaged in any form: applications are told `unavailable`, and the next ticks heal them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
from structlog.testing import capture_logs

from quota import Quota
from quota.decision import UNAVAILABLE
from quota.errors import QuotaError, QuotaUnavailableError
from quota.keys import ShardKeys
from quota.rules import Rules
from quota.values import parse_user_id
from service.reconcile import SYNCED, Reconciler
from worker.deps import Deps
from worker.jobs import drain_log
from worker.reconciling import reconcile_users

USER = parse_user_id("user-1")
Damage = Callable[[Deps, ShardKeys], Awaitable[Any]]
_LONG = "9" * 30


def _as_string(name: str) -> Damage:
    async def damage(deps: Deps, shard: ShardKeys) -> None:
        key = getattr(shard, name)
        for one in [key] if isinstance(key, str) else key:
            await deps.redis.delete(one)
            await deps.redis.set(one, "x")

    return damage


def _meta(**fields: str | None) -> Damage:
    async def damage(deps: Deps, shard: ShardKeys) -> None:
        for name, value in fields.items():
            if value is None:
                await deps.redis.hdel(shard.meta, name)
            else:
                await deps.redis.hset(shard.meta, name, value)

    return damage


def _rules(field: str, value: str) -> Damage:
    return lambda deps, shard: deps.redis.hset(shard.rules, field, value)


def _tallies(value: str) -> Damage:
    return lambda deps, shard: deps.redis.hset(shard.tallies, mapping={"lines": value, "c0": value})


def _no_rules(deps: Deps, shard: ShardKeys) -> Any:
    return deps.redis.delete(shard.rules)


DAMAGES: dict[str, Damage] = {
    **{
        f"{name} is a string": _as_string(name)
        for name in ("meta", "rules", "log", "tallies", "marks", "due")
    },
    **{
        f"{name} is {value!r}": _meta(**{name: value})
        for name in ("epoch", "rules", "shards", "dedupe_ms")
        for value in ("nonsense", "", "-1", "nan", "inf", "1e3", _LONG, None)
    },
    "position is nonsense": _meta(position="nonsense"),
    "kept_from is nonsense": _meta(kept_from="nonsense", gap="x"),
    "kept_from is nothing": _meta(kept_from="0-0"),
    "another number of shards": _meta(shards="7"),
    "another form of rules": _meta(rules_form="nonsense", rules_at="x"),
    **{
        f"document is {text[:12]!r}": _rules("#document", text)
        for text in (
            "{",
            "",
            "[]",
            "null",
            "7",
            '{"version": 1}',
            "[" * 100_000,
            "\ud800"[:0] + "é",
        )
    },
    "document is of a version that is no number": _rules(
        "#document", '{"version": "1", "document": {}}'
    ),
    "document has rules that are refused": _rules("#document", '{"version": 1, "document": {}}'),
    "a line of the rules is nonsense": _rules("free/event", "nonsense"),
    "a line of the rules is of another limit": _rules("free/event", "d,h,1;"),
    "a line of a tier is nonsense": _rules("free", "x"),
    "a line too many": _rules("free/free_for_all", "l,h,-1;"),
    "rules are gone": _no_rules,
    **{f"tallies are {text!r}": _tallies(text) for text in ("nonsense", "", "-5", "1.5", _LONG)},
}


class Nobody:
    """A worker that does not answer."""

    async def load_shard(self, *_: Any, **__: Any) -> None:
        """Not even this."""
        raise QuotaUnavailableError

    load = refund = explain = ended = load_shard


def application(deps: Deps, loader: Any) -> Quota:
    """An application that has read nothing yet, and does not wait long for what is not mended before the next tick."""
    settings = deps.settings
    return Quota(
        deps.redis,
        prefix=settings.key_prefix,
        shards=settings.shards,
        loader=loader,
        load_timeout_s=0.2,
        on_outage=False,
    )


async def tick(deps: Deps) -> list[Any]:
    """One tick of a worker; what failed in it."""
    with capture_logs() as logged:
        await drain_log({"deps": deps})
        await reconcile_users({"deps": deps})
    return [one for one in logged if one["event"].endswith(".failed")]


async def units(deps: Deps) -> int:
    async with deps.database.connection() as connection:
        return int(
            await connection.fetchval("SELECT coalesce(sum(amount), 0)::bigint FROM usage_logs")
        )


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
async def test_a_damaged_shard_is_unavailable_at_worst_and_heals_by_itself(
    deps: Deps, damage: Damage
) -> None:
    shard = deps.keys.shard_of(USER.id)
    await deps.quota.consume("user-1", "event", 5)
    await tick(deps)

    await damage(deps, shard)
    for loader in (Nobody(), deps.loader):
        async with application(deps, loader) as quota:
            decision = await quota.consume("user-1", "event", 1)
            assert decision or decision.code in (
                UNAVAILABLE,
                "limit_exceeded",
                "feature_not_in_tier",
            )
            with suppress(QuotaError):
                await quota.balance("user-1")
            with suppress(QuotaError):
                await quota.explain("user-1", "event")
    await tick(deps)
    failed = await tick(deps)
    after = await deps.quota.consume("user-1", "event", 1)
    await tick(deps)

    assert not failed
    assert after.allowed
    assert after.limit == 100
    # A log that was overwritten is lost; and what could not be answered may be counted, once, as ever.
    assert 6 <= await units(deps) <= 8
    assert (await deps.quota.check("user-1", "event")).used == await units(deps)
    reconciler = Reconciler(deps.database, deps.redis, deps.keys, grace_ms=3_600_000)
    [checked] = await reconciler.check([USER.id])
    assert checked.outcome == SYNCED
    backlog = {"shard": str(shard.index)}
    assert deps.registry.get_sample_value("allotment_log_backlog_records", backlog) == 0


@pytest.mark.parametrize("text", ["nonsense", "", "-1", _LONG, "1e3"])
async def test_a_sweep_that_can_not_be_read_begins_anew(deps: Deps, text: str) -> None:
    await deps.quota.consume("user-1", "event", 5)
    await tick(deps)
    await deps.redis.set(deps.keys.sweep, text)

    assert not await tick(deps)

    await deps.redis.delete(deps.keys.sweep)
    await deps.redis.hset(deps.keys.sweep, "x", "y")
    assert not await tick(deps)
    assert (await deps.redis.get(deps.keys.sweep)).isdigit()


@pytest.mark.parametrize(
    "text", [b"\xff", "{", "[]", "7", "null", '{"version": true, "document": {}}', "[" * 100_000]
)
def test_rules_that_can_not_be_read_are_none(text: str | bytes) -> None:
    assert Rules.published(text) is None
