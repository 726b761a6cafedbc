"""`InMemoryQuota`: the verbs of `quota.Quota` without Redis and PostgreSQL, for an application's tests."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

from quota.decision import UNKNOWN_USER, Decision
from quota.errors import (
    InvalidValueError,
    KeyConflictError,
    QuotaError,
    UnknownHoldError,
    UnknownKeyError,
)
from quota.explain import explained
from quota.hold import TTL_SECONDS_DEFAULT, Hold, Reservation, Settlement, parse_ttl
from quota.receipt import Receipt
from quota.testing.edge import parse_refund_id, usage_records
from quota.testing.given import COMMITTED, OPEN, RELEASED
from quota.testing.installation import Installation
from quota.testing.refunds import refunded, repeated
from quota.testing.seen import Seen
from quota.values import (
    AMOUNT_MAX,
    parse_amount,
    parse_feature,
    parse_key,
    parse_units,
    parse_user_id,
    usage_record,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from quota.balance import Balance
    from quota.explain import Explanation
    from quota.refund import Refund
    from quota.testing.given import Given
    from quota.testing.given import Hold as Held
    from quota.testing.member import Member
    from quota.values import UsageRecord, User

__all__ = ["InMemoryQuota"]


class InMemoryQuota(Installation):
    """Answers as a `Quota` does, by the same rules, and forgets everything with the process.

    It is never out of reach, so what rules say of an outage (`on_outage`) has no effect here.

    Beside the verbs of `Quota` it has those that an operator has, to set a scene; see `Installation`.
    """

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Nothing: there is nothing to give back."""

    @property
    def unrecorded(self) -> int:
        """As `Quota.unrecorded`; never any."""
        return 0

    async def consume(
        self,
        user_id: object,
        feature: object,
        amount: object = 1,
        *,
        now: datetime | None = None,
        **payload: Any,
    ) -> Decision:
        """As `Quota.consume`."""
        now_ms = self._now_ms(now)
        return self._consume(
            usage_record(user_id, feature, amount, now_ms=now_ms, **payload), now_ms
        )

    async def check(
        self,
        user_id: object,
        feature: object,
        amount: object = 1,
        *,
        now: datetime | None = None,
        **payload: Any,
    ) -> Decision:
        """As `Quota.check`."""
        now_ms = self._now_ms(now)
        record = usage_record(user_id, feature, amount, now_ms=now_ms, **payload)
        member = self._member(record.user, now_ms)
        if member is None:
            return _unknown(record, now_ms)
        return member.decide(record, now_ms=now_ms, take=False)

    async def consume_many(
        self, calls: Iterable[Mapping[str, Any]], *, now: datetime | None = None
    ) -> list[Decision | QuotaError]:
        """As `Quota.consume_many`."""
        now_ms = self._now_ms(now)
        answers: list[Decision | QuotaError] = []
        for call in calls:
            try:
                record = usage_record(now_ms=now_ms, **{"amount": 1, "feature": None, **call})
                answers.append(self._consume(record, now_ms))
            except QuotaError as error:
                answers.append(error)
            except TypeError as error:
                expected = f"the arguments of consume ({error})"
                answers.append(InvalidValueError("call", call, expected))
        return answers

    async def record(
        self,
        user_id: object,
        feature: object,
        amount: object = 1,
        *,
        now: datetime | None = None,
        **payload: Any,
    ) -> Receipt:
        """As `Quota.record`."""
        now_ms = self._now_ms(now)
        records = usage_records(user_id, feature, amount, now_ms=now_ms, payload=payload)
        member = self._known_member(records[0].user, now_ms)
        given = member.given(records)
        if given is not None:
            lines = tuple(replace(line, now_ms=now_ms, replayed=True) for line in given.decisions)
            return Receipt(len(lines), True, records[0].key, lines)
        for record in records:  # what nobody can pay for is told before any other reason
            member.cost_of(record)
        decisions = member.record(records, now_ms=now_ms)
        if decisions is None:
            expected = f"an amount that keeps the count below {AMOUNT_MAX}"
            raise InvalidValueError("amount", records[0].amount, expected)
        return Receipt(len(decisions), False, records[0].key, decisions)

    def reserve(
        self,
        user_id: object,
        feature: object,
        amount: object = 1,
        *,
        ttl: object = TTL_SECONDS_DEFAULT,
        now: datetime | None = None,
        **payload: Any,
    ) -> Reservation:
        """As `Quota.reserve`."""
        asked = self._reserve(user_id, feature, amount, ttl=ttl, now=now, payload=payload)
        return Reservation(asked, now=now)

    async def commit(
        self,
        user_id: object,
        hold_id: object,
        amount: object = None,
        *,
        now: datetime | None = None,
    ) -> Settlement:
        """As `Quota.commit`."""
        now_ms = self._now_ms(now)
        member, given, hold = self._held(user_id, hold_id, now_ms)
        actual = given.records[0].amount if amount is None else parse_units(amount)
        if hold.status == OPEN:
            denial = member.commit(given, actual, now_ms=now_ms)
            return _settlement(given, hold, replayed=False, decision=denial)
        return _settlement(given, hold, replayed=True)

    async def release(
        self, user_id: object, hold_id: object, *, now: datetime | None = None
    ) -> Settlement:
        """As `Quota.release`."""
        member, given, hold = self._held(user_id, hold_id, self._now_ms(now))
        replayed = hold.status != OPEN
        if not replayed:
            member.give_up(given, RELEASED)
        return _settlement(given, hold, replayed=replayed, wanted=RELEASED)

    async def refund(
        self,
        key: object,
        amount: object = None,
        *,
        user_id: object = None,
        refund_id: object = None,
        now: datetime | None = None,
    ) -> Refund:
        """As `Quota.refund`."""
        now_ms, text = self._now_ms(now), parse_key(key)
        units = None if amount is None else parse_amount(amount)
        name = None if refund_id is None else parse_refund_id(refund_id)
        member = self._owner(text, None if user_id is None else parse_user_id(user_id))
        member.advance(now_ms)
        given = member.answers.get(text)
        if given is None or not given.uses or (given.hold and given.hold.status == OPEN):
            raise UnknownKeyError(text)
        before = None if name is None else member.refunds.get(name)
        if before is not None:
            if before.key != text:
                raise KeyConflictError(name or "")
            return repeated(before)
        refund = refunded(member, given, units)
        if name is not None:
            member.refunds[name] = refund
        return refund

    async def roll(self, user_id: object, *, now: datetime | None = None) -> None:
        """As `Quota.roll`."""
        now_ms = self._now_ms(now)
        self._stored_member(parse_user_id(user_id)).advance(now_ms)

    async def balance(self, user_id: object, *, now: datetime | None = None) -> Balance:
        """As `Quota.balance`."""
        now_ms = self._now_ms(now)
        member = self._stored_member(parse_user_id(user_id))
        member.advance(now_ms)
        return Seen(member, now_ms).balance()

    async def explain(
        self, user_id: object, feature: object, *, now: datetime | None = None
    ) -> Explanation:
        """As `Quota.explain`; with nothing stored beside what decides, nothing is compared."""
        now_ms, name = self._now_ms(now), parse_feature(feature)
        member = self._stored_member(parse_user_id(user_id))
        member.advance(now_ms)
        return explained(Seen(member, now_ms), self._rules, None, name)

    def _consume(self, record: UsageRecord, now_ms: int) -> Decision:
        member = self._member(record.user, now_ms)
        if member is None:
            return _unknown(record, now_ms)
        given = member.given([record])
        if given is not None:
            return replace(given.decisions[0], now_ms=now_ms, replayed=True)
        return member.consume(record, now_ms=now_ms)

    async def _reserve(
        self,
        user_id: object,
        feature: object,
        amount: object,
        *,
        ttl: object,
        now: datetime | None,
        payload: dict[str, Any],
    ) -> Hold:
        now_ms, seconds = self._now_ms(now), parse_ttl(ttl)
        if payload.get("occurred_at") is not None:
            expected = "nothing: a hold is for what is yet to occur"
            raise InvalidValueError("occurred_at", payload["occurred_at"], expected)
        record = usage_record(user_id, feature, amount, now_ms=now_ms, **payload)
        return Hold(self, record.user.text, self._set_aside(record, 1000 * seconds, now_ms))

    def _set_aside(self, record: UsageRecord, ttl_ms: int, now_ms: int) -> Decision:
        member = self._member(record.user, now_ms)
        if member is None:
            return _unknown(record, now_ms)
        given = member.given([record], ttl_ms=ttl_ms)
        if given is not None:
            return replace(given.decisions[0], now_ms=now_ms, replayed=True)
        return member.reserve(record, ttl_ms=ttl_ms, now_ms=now_ms)

    def _held(self, user_id: object, hold_id: object, now_ms: int) -> tuple[Member, Given, Held]:
        key = parse_key(hold_id)
        member = self._stored_member(parse_user_id(user_id))
        member.advance(now_ms)
        given = member.answers.get(key)
        if given is None or given.hold is None:
            raise UnknownHoldError(key)
        return member, given, given.hold

    def _owner(self, key: str, user: User | None) -> Member:
        """Who has used *key*: *user*, or the only one."""
        if user is not None:
            return self._stored_member(user)
        found = [member for member in self._members.values() if key in member.answers]
        if not found:
            raise UnknownKeyError(key)
        if len(found) > 1:
            expected = f"a user: several have used the key {key!r:.80}"
            raise InvalidValueError("user_id", None, expected)
        return found[0]


def _settlement(
    given: Given,
    hold: Held,
    *,
    replayed: bool,
    decision: Decision | None = None,
    wanted: str = COMMITTED,
) -> Settlement:
    key = given.records[0].key
    return Settlement(key, hold.status, hold.amount, hold.cost, replayed, decision, wanted)


def _unknown(record: UsageRecord, now_ms: int) -> Decision:
    return Decision(
        False, UNKNOWN_USER, record.feature, record.amount, 0, 0, (), now_ms, record.key
    )
