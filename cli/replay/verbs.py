"""What each verb of a scenario does: one function a verb, on the code that the service runs.

Values go to that code as they are in the file, so a step may expect their refusal. The clock is
the step's, given as an argument.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Any

from cli.replay.fields import READS
from cli.replay.format import Step
from cli.replay.stage import World
from models import CreditGrant
from quota.values import (
    credits_of,
    instant_ms,
    instant_text,
    parse_credits,
    parse_feature,
    parse_instant,
    parse_user_id,
)
from service.database import statement
from service.grants import add_grant
from service.users import put_user

__all__ = ["NotSupportedError", "answer"]

Answer = dict[str, Any]
Act = Callable[[World, Step], Awaitable[Answer]]


class NotSupportedError(Exception):
    """The format has it, and this version can not run it yet."""

    def __init__(self, field: str = "") -> None:
        super().__init__(f"{field}: not supported by this version".removeprefix(": "))


async def answer(world: World, step: Step) -> Answer:
    """Do *step* and return what it answers, as JSON values.

    Raises:
        QuotaError: it was refused.
        NotSupportedError: the verb, or one of its fields, is not built yet.
    """
    act = _ACTS.get(step.do)
    if act is None:
        raise NotSupportedError
    if step.do in READS:
        await world.settle()
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


async def _grant(world: World, step: Step) -> Answer:
    fields, user = step.fields, parse_user_id(step.user)
    for name in ("every", "min_rollover", "max_rollover"):
        if fields.get(name, "0") not in ("0", 0):
            raise NotSupportedError(name)
    async with world.deps.database.session() as session:
        grant = await add_grant(
            session,
            user,
            world.rules,
            amount_micro=parse_credits(fields["amount"], field="amount"),
            at=step.at,
            name=fields["id"],
            priority=fields.get("priority", 1),
            kind=fields.get("kind", "granted"),
            effective_at=_instant(fields, "effective_at"),
            expires_at=_instant(fields, "expires_at"),
        )
    await world.reload(user)
    return _grant_answer(grant)


def _grant_answer(grant: CreditGrant) -> Answer:
    return {
        "id": grant.name,
        "amount": _credits(grant.amount_micro),
        "left": _credits(grant.left_micro),
        "priority": grant.priority,
        "kind": grant.kind,
        "effective_at": instant_text(instant_ms(grant.effective_at)),
        "expires_at": grant.expires_at and instant_text(instant_ms(grant.expires_at)),
    }


async def _set_tier(world: World, step: Step) -> Answer:
    user = parse_user_id(step.user)
    async with world.deps.database.session() as session:
        await put_user(session, user, world.rules, at=step.at, tier=step.fields["tier"])
    await world.reload(user)
    return {}


async def _balance(world: World, step: Step) -> Answer:
    return (await world.deps.quota.balance(step.user, now=step.at)).as_dict()


async def _usage(world: World, step: Step) -> Answer:
    user, feature = parse_user_id(step.user), parse_feature(step.fields["feature"])
    async with world.deps.database.connection() as connection:
        row = await connection.fetchrow(statement("cli.replay", "usage"), user.id, feature)
    assert row is not None, "it sums, so it always has a row"
    return {"used": row["used"], "credits": _credits(row["micro"])}


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
    "grant": _grant,
    "set_tier": _set_tier,
    "balance": _balance,
    "usage": _usage,
    "flush_redis": _flush_redis,
}
