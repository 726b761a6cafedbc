"""What each verb of a scenario does: one function a verb, on the code that the service runs.

Values go to that code as they are in the file, so a step may expect their refusal. The clock is
the step's, given as an argument.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from cli.replay.fields import READS
from cli.replay.format import Step
from cli.replay.stage import World
from models import CreditGrant
from quota.errors import InvalidValueError
from quota.period import RENEWALS
from quota.values import (
    credits_of,
    instant_ms,
    instant_text,
    parse_credits,
    parse_feature,
    parse_instant,
    parse_user_id,
)
from service.credits import reset_credits, void_grant
from service.database import statement
from service.giving import give_grant
from service.lifetime import lifetime_of
from service.moves import move_user
from service.rollups import fold_all

__all__ = ["NotSupportedError", "answer"]

# What changes PostgreSQL does so once all that was admitted is there.
_STANDING_STILL = frozenset({"grant", "void", "reset", "refund", "set_tier"})

_FOLD_SECONDS_MAX = 60.0

Answer = dict[str, Any]
Act = Callable[[World, Step], Awaitable[Answer]]


class NotSupportedError(Exception):
    """The format has it, and this version can not run it yet."""

    def __str__(self) -> str:
        return "not supported by this version"


async def answer(world: World, step: Step) -> Answer:
    """Do *step* and return what it answers, as JSON values.

    Raises:
        QuotaError: it was refused.
        NotSupportedError: the verb is not built yet.
    """
    act = _ACTS.get(step.do)
    if act is None:
        raise NotSupportedError
    if step.do in READS or step.do in _STANDING_STILL:
        await world.settle(instant_ms(step.at))
    return await act(world, step)


async def _consume(world: World, step: Step) -> Answer:
    call = dict(step.fields)
    parallel = call.pop("parallel", None)
    consume = world.deps.quota.consume
    if parallel is None:
        return (await consume(step.user, **call, now=step.at)).as_dict()
    calls = [consume(step.user, **call, now=step.at) for _ in range(parallel)]
    decisions = await asyncio.gather(*calls)
    allowed = sum(decision.allowed for decision in decisions)
    return {"allowed": allowed, "denied": len(decisions) - allowed}


async def _check(world: World, step: Step) -> Answer:
    return (await world.deps.quota.check(step.user, **step.fields, now=step.at)).as_dict()


async def _record(world: World, step: Step) -> Answer:
    call = dict(step.fields)
    feature = call.pop("features") if "features" in call else call.pop("feature")
    return (await world.deps.quota.record(step.user, feature, **call, now=step.at)).as_dict()


async def _reserve(world: World, step: Step) -> Answer:
    call = dict(step.fields)
    key = call.pop("hold")
    hold = await world.deps.quota.reserve(step.user, **call, key=key, now=step.at)
    return hold.decision.as_dict()


async def _commit(world: World, step: Step) -> Answer:
    hold, amount = step.fields["hold"], step.fields.get("amount")
    ended = await world.deps.quota.commit(step.user, hold, amount, now=step.at)
    return ended.as_dict()


async def _release(world: World, step: Step) -> Answer:
    ended = await world.deps.quota.release(step.user, step.fields["hold"], now=step.at)
    return ended.as_dict()


async def _refund(world: World, step: Step) -> Answer:
    key, amount = step.fields["key"], step.fields.get("amount")
    refund = await world.deps.quota.refund(key, amount, user_id=step.user, now=step.at)
    return refund.as_dict()


async def _grant(world: World, step: Step) -> Answer:
    fields, user = step.fields, parse_user_id(step.user)
    grant = await give_grant(
        world.stores,
        user,
        world.rules,
        amount_micro=parse_credits(fields["amount"], field="amount"),
        at=step.at,
        name=fields["id"],
        priority=fields.get("priority", 1),
        kind=fields.get("kind", "granted"),
        effective_at=_instant(fields, "effective_at"),
        expires_at=_instant(fields, "expires_at"),
        every=_every(fields),
        min_rollover_micro=parse_credits(fields.get("min_rollover", "0"), field="min_rollover"),
        max_rollover_micro=parse_credits(fields.get("max_rollover", "0"), field="max_rollover"),
    )
    return _grant_answer(grant)


def _every(fields: Mapping[str, Any]) -> str | None:
    if "every" in fields and fields["every"] is None:  # nothing is no word for once
        raise InvalidValueError("every", None, f"one of {', '.join(RENEWALS)}")
    every: str | None = fields.get("every")
    return every


def _grant_answer(grant: CreditGrant) -> Answer:
    return {
        "id": grant.name,
        "amount": _credits(grant.amount_micro),
        "left": _credits(grant.left_micro),
        "priority": grant.priority,
        "kind": grant.kind,
        "effective_at": instant_text(instant_ms(grant.effective_at)),
        "expires_at": grant.expires_at and instant_text(instant_ms(grant.expires_at)),
        "every": grant.every,
        "min_rollover": _credits(grant.min_rollover_micro),
        "max_rollover": _credits(grant.max_rollover_micro),
    }


async def _void(world: World, step: Step) -> Answer:
    user = parse_user_id(step.user)
    void = await void_grant(world.stores, user, world.rules, step.fields["id"], at=step.at)
    return void.as_dict()


async def _reset(world: World, step: Step) -> Answer:
    reset = await reset_credits(
        world.stores,
        parse_user_id(step.user),
        world.rules,
        preserve_overage=_preserve_overage(step.fields),
        at=step.at,
    )
    return reset.as_dict()


def _preserve_overage(fields: Mapping[str, Any]) -> bool:
    found = fields.get("preserve_overage", False)
    if not isinstance(found, bool):
        raise InvalidValueError("preserve_overage", found, "true or false")
    return found


async def _set_tier(world: World, step: Step) -> Answer:
    tier = step.fields["tier"]
    await move_user(world.stores, parse_user_id(step.user), world.rules, at=step.at, tier=tier)
    return {}


async def _balance(world: World, step: Step) -> Answer:
    return (await world.deps.quota.balance(step.user, now=step.at)).as_dict()


async def _usage(world: World, step: Step) -> Answer:
    user, feature = parse_user_id(step.user), parse_feature(step.fields["feature"])
    async with world.deps.database.connection() as connection:
        row = await connection.fetchrow(statement("cli.replay", "usage"), user.id, feature)
    assert row is not None, "it sums, so it always has a row"
    return {"used": row["used"], "credits": _credits(row["micro"])}


async def _lifetime(world: World, step: Step) -> Answer:
    await fold_all(world.deps.database, seconds_max=_FOLD_SECONDS_MAX)
    async with world.deps.database.connection() as connection:
        found = await lifetime_of(connection, parse_user_id(step.user).id, at=step.at)
    return {name: _column(value) for name, value in (found or {}).items()}


def _column(value: Any) -> Any:
    """A column as a JSON value."""
    if isinstance(value, datetime):
        return instant_text(instant_ms(value))
    return str(value) if isinstance(value, (Decimal, UUID)) else value


async def _flush_redis(world: World, step: Step) -> Answer:
    assert step.do == "flush_redis"
    await world.flush()
    return {}


def _credits(micro: int) -> str:
    return format(credits_of(micro), "f")


def _instant(fields: Mapping[str, Any], name: str) -> datetime | None:
    return parse_instant(fields[name], field=name) if name in fields else None


_ACTS: Mapping[str, Act] = {
    "consume": _consume,
    "check": _check,
    "record": _record,
    "reserve": _reserve,
    "commit": _commit,
    "release": _release,
    "refund": _refund,
    "grant": _grant,
    "void": _void,
    "reset": _reset,
    "set_tier": _set_tier,
    "balance": _balance,
    "usage": _usage,
    "lifetime": _lifetime,
    "flush_redis": _flush_redis,
}
