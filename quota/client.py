"""The Redis client: every verb of DESIGN 8 that an application calls."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Self

from redis.asyncio import Redis
from redis.exceptions import RedisError

from quota.asking import Asker
from quota.balance import Balance, balance_of
from quota.calls import given_ms, one_record, records_of, wall_ms
from quota.decision import UNAVAILABLE, UNKNOWN_USER, Decision
from quota.ending import end_hold
from quota.errors import (
    InvalidValueError,
    QuotaError,
    QuotaUnavailableError,
    UnknownUserError,
)
from quota.explain import Explanation, explanation_of
from quota.gate import NotReadyError
from quota.hold import TTL_SECONDS_DEFAULT, Hold, Reservation, Settlement, parse_ttl
from quota.keys import PREFIX_DEFAULT, SHARDS_DEFAULT
from quota.loading import RequestLoader
from quota.outage import Outage
from quota.receipt import Receipt
from quota.refund import Refund
from quota.values import (
    AMOUNT_MAX,
    UsageRecord,
    parse_amount,
    parse_feature,
    parse_key,
    parse_label,
    parse_units,
    parse_user_id,
    usage_record,
)
from quota.wire import (
    CHECK,
    CONSUME,
    RECORD,
    Ask,
    Reserving,
    decision_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from quota.gate import Answer
    from quota.loading import Loader
    from quota.scripts import Client

    _First = Answer | NotReadyError | RedisError | None  # what a call met that came already

__all__ = ["Quota"]

TIMEOUT_S = 1.0  # for one call to Redis; a gate that is slower than this is down
LOAD_TIMEOUT_S = 5.0  # for a user that is not in Redis; a worker answers in milliseconds
_SAME_TRIES_MAX = 5  # of reading Redis and PostgreSQL with nothing admitted between
_log = logging.getLogger("quota")


class Quota:
    """Decides, counts and logs usage, in one atomic step in Redis.

    One instance serves a process: calls that wait at the same time share round trips.
    """

    def __init__(
        self,
        redis: Client,
        *,
        prefix: str = PREFIX_DEFAULT,
        shards: int = SHARDS_DEFAULT,
        loader: Loader | None = None,
        timeout_s: float = TIMEOUT_S,
        load_timeout_s: float = LOAD_TIMEOUT_S,
        on_outage: bool = True,
    ) -> None:
        """Work with *redis*, which stays the caller's.

        Without *on_outage* nothing is admitted while Redis can not be reached, whatever the rules
        allow: for who can keep a record himself, and better than in memory, as a queue does.
        """
        self._redis = redis
        self._owns_redis = False
        self._loader = loader or RequestLoader(redis, timeout_s=load_timeout_s)
        self._asker = Asker(
            redis,
            self._loader,
            prefix=prefix,
            shards=shards,
            timeout_s=timeout_s,
            load_timeout_s=load_timeout_s,
        )
        self._outage = Outage(self._asker, redis, timeout_s=timeout_s)
        self._on_outage = on_outage
        self._load_timeout_s = load_timeout_s

    @classmethod
    def from_url(cls, url: str, **options: Any) -> Self:
        """A Quota with a connection pool of its own; *options* as in the constructor."""
        quota = cls(Redis.from_url(url, socket_connect_timeout=TIMEOUT_S), **options)
        quota._owns_redis = True
        return quota

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Finish the calls that wait and give the connections back.

        What was admitted without Redis is tried once more; the log says what could not be recorded.
        """
        await self._outage.close(timeout_s=self._load_timeout_s)
        await self._asker.close()
        if self._owns_redis:
            await self._redis.aclose()

    @property
    def unrecorded(self) -> int:
        """How many records were admitted without Redis, and wait for it in the memory of this process."""
        return len(self._outage)

    async def consume(
        self,
        user_id: object,
        feature: object,
        amount: object = 1,
        *,
        now: datetime | None = None,
        **payload: Any,
    ) -> Decision:
        """Take *amount* units, or say what stopped it; safe to repeat with the same *key*.

        *payload*: key, format, quality, metadata, occurred_at, event_id, event_type,
        product_version, session_id. *now* is for tests; the clock is the Redis server's.

        Raises:
            InvalidValueError: a value was refused; its field is named.
            KeyConflictError: the key was used for another record.
        """
        now_ms, record = one_record(user_id, feature, amount, now=now, payload=payload)
        ask = Ask(CONSUME, [record], repeatable=payload.get("key") is not None)
        return await self._decide(ask, record, now_ms)

    async def check(
        self,
        user_id: object,
        feature: object,
        amount: object = 1,
        *,
        now: datetime | None = None,
        **payload: Any,
    ) -> Decision:
        """What `consume` would answer, with the standing as it is; nothing is counted."""
        now_ms, record = one_record(user_id, feature, amount, now=now, payload=payload)
        return await self._decide(Ask(CHECK, [record]), record, now_ms)

    async def consume_many(
        self, calls: Iterable[Mapping[str, Any]], *, now: datetime | None = None
    ) -> list[Decision | QuotaError]:
        """`consume` for each of *calls* (its arguments by name), in as few round trips as possible.

        The answers are in the order of the calls. A call that was refused outright has its error
        in its place, told by its type or by `code`, which both have; its neighbours are decided
        all the same. Calls for one user are decided in their order once the user is in Redis; those
        that find a user cold wait for the load, and may be overtaken.
        """
        now_ms = given_ms(now)
        answers: list[Decision | QuotaError] = []
        asked: list[tuple[int, UsageRecord, Ask, asyncio.Future[Answer]]] = []
        for place, call in enumerate(calls):
            answers.append(_NO_ANSWER)
            try:
                arguments = {"amount": 1, "feature": None, **call}
                record = usage_record(now_ms=now_ms or wall_ms(), **arguments)
            except InvalidValueError as error:
                answers[place] = error
            except TypeError as error:
                answers[place] = InvalidValueError(
                    "call", call, f"the arguments of consume ({error})"
                )
            else:
                ask = Ask(CONSUME, [record], repeatable=call.get("key") is not None)
                asked.append(
                    (
                        place,
                        record,
                        ask,
                        self._asker.gate_of(record.user).enqueue(ask, now_ms=now_ms),
                    )
                )
        outcomes = await asyncio.gather(*(future for *_, future in asked), return_exceptions=True)
        again: list[tuple[int, UsageRecord, Ask, _First]] = []
        for (place, record, ask, _), outcome in zip(asked, outcomes, strict=True):
            if not isinstance(outcome, BaseException) and isinstance(outcome[1][0], bytes):
                answers[place] = self._decided(outcome[1][0], record, outcome[0])
            else:
                again.append(
                    (
                        place,
                        record,
                        ask,
                        outcome
                        if isinstance(outcome, (NotReadyError, RedisError, tuple))
                        else None,
                    )
                )
        # All at once: users that have to be loaded share a request, and a user's calls one load.
        decided = await asyncio.gather(
            *(self._decide(ask, record, now_ms, first) for _, record, ask, first in again),
            return_exceptions=True,
        )
        for (place, *_), answer in zip(again, decided, strict=True):
            if isinstance(answer, BaseException) and not isinstance(answer, QuotaError):
                raise answer
            answers[place] = answer
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
        """Count what has already happened; never denied.

        *feature* is a name with an *amount*, or a mapping of several names to their amounts, which
        share the key and are counted together or not at all.

        Raises:
            InvalidValueError: a value was refused; its field is named.
            KeyConflictError: the key was used for another record.
            QuotaUnavailableError: it is not recorded; repeat it with the same key.
            UnknownUserError: there is no such user and none is made on first use.
        """
        now_ms, records = records_of(user_id, feature, amount, now=now, payload=payload)
        ask = Ask(RECORD, records, repeatable=payload.get("key") is not None)
        try:
            at_ms, replies = await self._asker.answer(ask, records[0].user, now_ms)
        except (RedisError, QuotaUnavailableError) as error:
            admitted = self._outage.decide(ask, error, now_ms) if self._on_outage else None
            if admitted is None:
                raise QuotaUnavailableError(str(error)) from error
            return Receipt(len(records), admitted[0].replayed, records[0].key, tuple(admitted))
        lines = [
            self._decided(reply, record, at_ms)
            for reply, record in zip(replies, records, strict=True)
        ]
        if not lines[0]:
            raise InvalidValueError(
                "amount", lines[0].amount, f"an amount that keeps the count below {AMOUNT_MAX}"
            )
        return Receipt(len(lines), lines[0].replayed, records[0].key, tuple(lines))

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
        """Set *amount* units and their cost aside for *ttl* seconds; then commit what was used.

        Await it for a Hold, or use it as a block, which releases what it does not commit:

            async with quota.reserve("user-1", "tokens", 4000, ttl=60) as hold:
                if hold:
                    await hold.commit(743)

        *payload* as in `consume`, but `occurred_at`. Raises as `consume` does.
        """
        return Reservation(self._reserve(user_id, feature, amount, ttl, now, payload), now=now)

    async def commit(
        self,
        user_id: object,
        hold_id: object,
        amount: object = None,
        *,
        now: datetime | None = None,
    ) -> Settlement:
        """End a hold with *amount* units used, default all that is held; 0 is none.

        What is not used goes back; more than is held is decided like a consume, at the price of the
        reserve. Whoever ends a hold first wins, and everyone later is answered how it ended.

        Raises:
            InvalidValueError, UnknownUserError
            UnknownHoldError: there is no such hold, or it ended longer ago than keys are remembered.
            QuotaUnavailableError: it is not known whether it ended; repeat it.
        """
        units = None if amount is None else parse_units(amount)
        user, key = parse_user_id(user_id), parse_key(hold_id)
        return await end_hold(self._asker, self._loader, user, key, units, now_ms=given_ms(now))

    async def release(
        self, user_id: object, hold_id: object, *, now: datetime | None = None
    ) -> Settlement:
        """End a hold with nothing used: units and credits go back. Raises as `commit` does."""
        user, key = parse_user_id(user_id), parse_key(hold_id)
        return await end_hold(
            self._asker, self._loader, user, key, None, now_ms=given_ms(now), release=True
        )

    async def refund(
        self,
        key: object,
        amount: object = None,
        *,
        user_id: object = None,
        refund_id: object = None,
        now: datetime | None = None,
    ) -> Refund:
        """Take a record back, or *amount* units of it: units and what was paid for them.

        Clamped to what is left of the record, so a repeat gives nothing; a repeat of a part does too when
        it carries the same *refund_id*. Credits go back to the grants that paid, last first, and not to
        those that are over: the answer says what was applied. A key of several users needs *user_id*.

        Raises:
            InvalidValueError, UnknownUserError
            UnknownKeyError: nothing was recorded under this key.
            QuotaUnavailableError: no worker answered; repeat it with the same *refund_id*.
        """
        user = None if user_id is None else parse_user_id(user_id)
        try:
            answer = await self._loader.refund(
                self._asker.keys,
                user,
                parse_key(key),
                amount=None if amount is None else parse_amount(amount),
                refund_id=parse_label(refund_id, field="refund_id"),
                now_ms=given_ms(now),
            )
        except RedisError as error:
            raise QuotaUnavailableError(str(error)) from error
        return Refund.load(answer)

    async def explain(
        self, user_id: object, feature: object, *, now: datetime | None = None
    ) -> Explanation:
        """Why one unit of *feature* would be allowed or not: every limit, which grants pay, Redis beside PostgreSQL.

        Raises:
            InvalidValueError, UnknownUserError, QuotaUnavailableError
        """
        user, name, now_ms = parse_user_id(user_id), parse_feature(feature), given_ms(now)
        try:
            reply, at_ms = await self._asker.read(user, now_ms)
            rules = await self._asker.rules_for(user)
            for _ in range(_SAME_TRIES_MAX):
                before, before_ms = reply, at_ms
                try:
                    stored = await self._loader.explain(
                        self._asker.keys, user, name, now_ms=before_ms
                    )
                except QuotaUnavailableError as error:
                    _log.warning("explained without what is stored: %s", error)
                    stored = None
                    break
                reply, at_ms = await self._asker.read(user, now_ms)
                if reply[1:] == before[1:]:
                    break  # else something was admitted between the two, and would show as drift
        except RedisError as error:
            raise QuotaUnavailableError(str(error)) from error
        return explanation_of(reply, rules, stored, name, at_ms=at_ms)

    async def roll(self, user_id: object, *, now: datetime | None = None) -> None:
        """Bring the user to this instant: holds that are over expire, credits change as they are due.

        Decisions do so by themselves; this is for whoever watches over users that make none.
        """
        user = parse_user_id(user_id)
        try:
            _, at_ms = await self._asker.read(user, given_ms(now))
            await self._asker.roll(user, at_ms)
        except RedisError as error:
            raise QuotaUnavailableError(str(error)) from error

    async def balance(self, user_id: object, *, now: datetime | None = None) -> Balance:
        """Credits, grants in burn order and every limit, as Redis has them.

        Raises:
            UnknownUserError, QuotaUnavailableError
        """
        user, now_ms = parse_user_id(user_id), given_ms(now)
        try:
            stored, at_ms = await self._asker.read(user, now_ms)
            return balance_of(stored, await self._asker.rules_for(user), at_ms=at_ms)
        except RedisError as error:
            raise QuotaUnavailableError(str(error)) from error

    async def _decide(
        self,
        ask: Ask,
        record: UsageRecord,
        now_ms: int,
        first: _First = None,
    ) -> Decision:
        if isinstance(first, RedisError):
            return self._without_redis(ask, record, first, now_ms)
        try:
            at_ms, replies = await self._asker.answer(ask, record.user, now_ms, first)
        except UnknownUserError:
            return _undecided(UNKNOWN_USER, record, now_ms)
        except (RedisError, QuotaUnavailableError) as error:
            return self._without_redis(ask, record, error, now_ms)
        return self._decided(replies[0], record, at_ms)

    def _decided(self, reply: bytes, record: UsageRecord, at_ms: int) -> Decision:
        decision = decision_of(reply, record, at_ms)
        if self._asker.allow_on_outage:
            self._outage.saw(record.user, decision)
        return decision

    def _without_redis(
        self, ask: Ask, record: UsageRecord, error: Exception, now_ms: int
    ) -> Decision:
        """The decision by the outage policy of the feature, else that there is none."""
        admitted = self._outage.decide(ask, error, now_ms) if self._on_outage else None
        if admitted is not None:
            return admitted[0]
        _log.warning("quota unavailable: %s", error)
        return _undecided(UNAVAILABLE, record, now_ms)

    async def _reserve(
        self,
        user_id: object,
        feature: object,
        amount: object,
        ttl: object,
        now: datetime | None,
        payload: dict[str, Any],
    ) -> Hold:
        ttl_ms = parse_ttl(ttl) * 1000
        if payload.get("occurred_at") is not None:
            raise InvalidValueError(
                "occurred_at", payload["occurred_at"], "nothing: a hold is for what is yet to occur"
            )
        now_ms, record = one_record(user_id, feature, amount, now=now, payload=payload)
        ask = Reserving(record, ttl_ms=ttl_ms, repeatable=payload.get("key") is not None)
        return Hold(self, record.user.text, await self._decide(ask, record, now_ms))


_NO_ANSWER = QuotaError("not asked yet")


def _undecided(code: str, record: UsageRecord, now_ms: int) -> Decision:
    return Decision(
        False, code, record.feature, record.amount, 0, 0, (), now_ms or wall_ms(), record.key
    )
