"""The real stack and `InMemoryQuota` behind the same verbs, so that one step can be asked of both.

A verb is one function on either side. An answer is brought into a form that compares: ids that are random
are left out, an error is its code and the field it names.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from quota.allowance import COUNTS_AFTER_MS
from quota.balance import Balance
from quota.decision import Decision
from quota.errors import InvalidValueError, QuotaError
from quota.explain import Explanation
from quota.hold import Settlement
from quota.receipt import Receipt
from quota.refund import Refund
from quota.rules import Rules
from quota.testing import InMemoryQuota
from quota.values import instant_ms, instant_of, parse_credits, parse_instant, parse_user_id
from service.changes import Stores
from service.credits import reset_credits, void_grant
from service.database import statement
from service.giving import give_grant
from service.moves import move_user
from service.tiers import apply_rules, publish
from worker.deps import Deps
from worker.holds import expire_holds

Answer = Any


@dataclass(slots=True)
class Real:
    """Redis, PostgreSQL and the worker's code, with an operator's verbs beside the client's."""

    deps: Deps
    rules: Rules = field(init=False)

    @property
    def stores(self) -> Stores:
        deps = self.deps
        return Stores(deps.database, deps.redis, deps.keys, settle=self.apply, roll=deps.quota.roll)

    async def apply(self) -> None:
        """Apply all that was admitted."""
        while await self.deps.drain.run(seconds_max=60):
            pass

    async def roll(self, user: str, now: datetime) -> None:
        """What the worker's job has done, a second later, about a hold of the user that is due."""
        await self.deps.quota.roll(user, now=now)

    async def expire(self, now: datetime) -> None:
        """What the worker's job does about holds that are due."""
        await expire_holds(self.deps, now_ms=instant_ms(now))

    async def forget(self, user: str) -> None:
        """Redis drops the user, as it does after a week or under pressure."""
        user_id = parse_user_id(user).id
        shard = self.deps.keys.shard_of(user_id)
        await self.deps.redis.delete(shard.user_of(user_id.hex), shard.grants_of(user_id.hex))

    async def lose_redis(self) -> None:
        """All of Redis is lost, after everything was applied."""
        await self.apply()
        keys = [key async for key in self.deps.redis.scan_iter(f"{self.deps.keys.prefix}:*", 1000)]
        if keys:
            await self.deps.redis.unlink(*keys)

    async def consume(self, user: str, *, now: datetime, **call: Any) -> Decision:
        return await self.deps.quota.consume(user, now=now, **call)

    async def check(self, user: str, *, now: datetime, **call: Any) -> Decision:
        return await self.deps.quota.check(user, now=now, **call)

    async def record(self, user: str, *, now: datetime, **call: Any) -> Receipt:
        return await self.deps.quota.record(user, now=now, **call)

    async def reserve(self, user: str, *, now: datetime, **call: Any) -> Decision:
        return (await self.deps.quota.reserve(user, now=now, **call)).decision

    async def commit(self, user: str, *, now: datetime, key: str, amount: int | None) -> Settlement:
        return await self.deps.quota.commit(user, key, amount, now=now)

    async def release(self, user: str, *, now: datetime, key: str) -> Settlement:
        return await self.deps.quota.release(user, key, now=now)

    async def refund(self, user: str, *, now: datetime, **call: Any) -> Refund:
        await self.roll(user, now)
        await self.apply()
        return await self.deps.quota.refund(user_id=user, now=now, **call)

    async def balance(self, user: str, *, now: datetime) -> Balance:
        return await self.deps.quota.balance(user, now=now)

    async def explain(self, user: str, *, now: datetime, feature: str) -> Explanation:
        return await self.deps.quota.explain(user, feature, now=now)

    async def grant(self, user: str, *, now: datetime, **call: Any) -> Answer:
        fields: dict[str, Any] = {
            name: call.pop(name) for name in ("priority", "kind", "every") if name in call
        }
        for name in ("amount", "min_rollover", "max_rollover"):
            fields[f"{name}_micro"] = parse_credits(call.pop(name, 0), field=name)
        for name in ("effective_at", "expires_at"):
            found = call.pop(name, None)
            fields[name] = None if found is None else parse_instant(found, field=name)
        found = parse_user_id(user)
        await give_grant(self.stores, found, self.rules, at=now, name=call.pop("id"), **fields)
        assert not call

    async def void(self, user: str, *, now: datetime, id: str) -> int:
        void = await void_grant(self.stores, parse_user_id(user), self.rules, id, at=now)
        return void.voided

    async def reset(self, user: str, *, now: datetime, preserve_overage: bool) -> None:
        found = parse_user_id(user)
        await reset_credits(
            self.stores, found, self.rules, preserve_overage=preserve_overage, at=now
        )

    async def set_user(self, user: str, *, now: datetime, **changes: Any) -> None:
        await move_user(self.stores, parse_user_id(user), self.rules, at=now, **changes)

    async def apply_tiers(self, user: str, *, now: datetime, document: dict[str, Any]) -> None:  # noqa: ARG002
        await self.apply()
        await self.put_tiers(document, at=now)

    async def put_tiers(self, document: dict[str, Any], *, at: datetime) -> None:
        """Apply so much earlier that allowances count from *at* on, as in memory; what counts later is forgotten."""
        at -= timedelta(milliseconds=COUNTS_AFTER_MS)
        async with self.deps.database.connection() as connection:
            await connection.execute("UPDATE tiers SET applied_at = least(applied_at, $1)", at)
        self.rules = await apply_rules(self.deps.database, Rules.from_document(document), at=at)
        await publish(self.deps.redis, self.deps.keys, self.rules)


class Memory:
    """`InMemoryQuota` with the same signatures."""

    def __init__(self, quota: InMemoryQuota) -> None:
        self.quota = quota

    def next_change(self, user: str, after: datetime) -> datetime:
        """The next instant at which something of the user changes by itself; *after* itself if nothing does."""
        member, after_ms = self.quota._members[parse_user_id(user).id], instant_ms(after)
        holds = [given.hold for given in member.answers.values() if given.hold is not None]
        changes = [
            member.account.valid_until_ms(at_ms=after_ms),
            *(hold.expires_at_ms for hold in holds if hold.status == "open"),
        ]
        return instant_of(min((ms for ms in changes if ms and ms > after_ms), default=after_ms))

    def came_to_nothing(self, user: str, key: str, at: datetime) -> bool:
        """Whether the hold *key* was released, or has expired by *at*."""
        hold = self.quota._members[parse_user_id(user).id].answers[key].hold
        assert hold is not None
        is_over = hold.status == "open" and hold.expires_at_ms <= instant_ms(at)
        return is_over or hold.status in ("released", "expired")

    async def consume(self, user: str, *, now: datetime, **call: Any) -> Decision:
        return await self.quota.consume(user, now=now, **call)

    async def check(self, user: str, *, now: datetime, **call: Any) -> Decision:
        return await self.quota.check(user, now=now, **call)

    async def record(self, user: str, *, now: datetime, **call: Any) -> Receipt:
        return await self.quota.record(user, now=now, **call)

    async def reserve(self, user: str, *, now: datetime, **call: Any) -> Decision:
        return (await self.quota.reserve(user, now=now, **call)).decision

    async def commit(self, user: str, *, now: datetime, key: str, amount: int | None) -> Settlement:
        return await self.quota.commit(user, key, amount, now=now)

    async def release(self, user: str, *, now: datetime, key: str) -> Settlement:
        return await self.quota.release(user, key, now=now)

    async def refund(self, user: str, *, now: datetime, **call: Any) -> Refund:
        return await self.quota.refund(user_id=user, now=now, **call)

    async def balance(self, user: str, *, now: datetime) -> Balance:
        return await self.quota.balance(user, now=now)

    async def explain(self, user: str, *, now: datetime, feature: str) -> Explanation:
        return await self.quota.explain(user, feature, now=now)

    async def grant(self, user: str, *, now: datetime, **call: Any) -> None:
        await self.quota.grant(user, now=now, **call)

    async def void(self, user: str, *, now: datetime, id: str) -> int:
        return int(await self.quota.void(user, id, now=now) * 1_000_000)

    async def reset(self, user: str, *, now: datetime, preserve_overage: bool) -> None:
        await self.quota.reset(user, preserve_overage=preserve_overage, now=now)

    async def set_user(self, user: str, *, now: datetime, **changes: Any) -> None:
        await self.quota.set_user(user, now=now, **changes)

    async def apply_tiers(self, user: str, *, now: datetime, document: dict[str, Any]) -> None:  # noqa: ARG002
        await self.quota.apply_tiers(document, now=now)


async def answer(asked: Callable[[], Awaitable[Answer]]) -> Answer:
    """What was answered, or refused, as plain values."""
    try:
        return plain(await asked())
    except InvalidValueError as error:
        return {"error": error.code, "field": error.field}
    except QuotaError as error:
        return {"error": error.code}


def plain(found: Answer) -> Answer:
    """An answer as values that compare."""
    if isinstance(found, Decision):
        return {**found.as_dict(), "credits_micro": found.credits_micro, "now_ms": found.now_ms}
    if isinstance(found, Receipt):
        return {**found.as_dict(), "decisions": [plain(line) for line in found.decisions]}
    if isinstance(found, Settlement):
        decision = None if found.decision is None else plain(found.decision)
        return {**found.as_dict(), "wanted": found.wanted, "decision": decision}
    if isinstance(found, Balance):
        return _balance(found)
    if isinstance(found, Explanation):
        return _explanation(found)
    return found.as_dict() if isinstance(found, Refund) else found


def _balance(balance: Balance) -> Answer:
    # An allowance that a tier no longer gives is kept where it has a row, as nothing.
    grants = [grant for grant in balance.grants if grant.name != "allowance" or grant.amount]
    return {
        **balance.as_dict(),
        "credits_micro": balance.credits_micro,
        "grants": [(grant.name, grant.amount, grant.left, grant.every) for grant in grants],
        # Which of their periods Redis gives units back to depends on the limits in force.
        "holds": {key: replace(held, ends={}) for key, held in balance.holds.items()},
    }


def _explanation(explanation: Explanation) -> Answer:
    assert not explanation.drifts, explanation.compared
    said = explanation.as_dict()
    for name in ("entries", "compared"):  # what PostgreSQL has beside Redis; in memory there is one
        del said[name]
    for name in ("grants", "grants_not_paying"):
        given = [one for one in said[name] if one["id"] != "allowance" or one["amount"] != "0"]
        # An allowance that has paid nothing yet has no row: it begins with the renewal that runs.
        said[name] = [
            {**one, "effective_at": None} if one["id"] == "allowance" else one for one in given
        ]
    return said


async def step(
    real: Real, memory: Memory, verb: str, user: str, *, now: datetime, **call: Any
) -> Answer:
    """Ask *verb* of both, and see that they answer alike."""
    found = await answer(lambda: getattr(real, verb)(user, now=now, **call))
    expected = await answer(lambda: getattr(memory, verb)(user, now=now, **call))
    if found != expected:
        parted = "\n".join(f"  {one}" for one in _differences(found, expected))
        raise AssertionError(f"{verb} at {now:%F %T.%f} {call}: in fact, and in memory:\n{parted}")
    return found


def _differences(found: Answer, expected: Answer) -> list[str]:
    if not isinstance(found, dict) or not isinstance(expected, dict):
        return [f"{found} | {expected}"]
    return [
        f"{name}: {found.get(name)} | {expected.get(name)}"
        for name in {**found, **expected}
        if found.get(name) != expected.get(name)
    ]


async def imbalance(deps: Deps, user: str, *, now: datetime) -> int:
    """Micro-credits by which granted and what became of it differ (DESIGN 5), after all was applied."""
    async with deps.database.connection() as connection:
        row = await connection.fetchrow(
            statement("service", "credits"), [parse_user_id(user).id], now
        )
    assert row is not None, "it has a row for each user that is asked for"
    spent = sum(row[part] for part in ("burnt", "left", "held", "expired", "voided"))
    return int(row["granted"] - spent + row["overage"])
