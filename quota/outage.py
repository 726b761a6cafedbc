"""What a client does while Redis can not be reached: admits what the rules allow, and records it afterwards.

The rules and the user's tier are what the client saw last; who has seen neither, denies. Each process has
an allowance of its own: N of them admit N times as much at most. Whatever was admitted here is kept in
memory until it is recorded, so it is lost with a process that is killed meanwhile.

It is never counted twice: a record is sent with the key and the fingerprint of the call, of which it may
not be known whether it was carried out.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    ClusterDownError,
    ReadOnlyError,
    RedisError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from quota.decision import OK, LocalDecision
from quota.errors import (
    InvalidValueError,
    KeyConflictError,
    QuotaUnavailableError,
    UnknownUserError,
)
from quota.spool import Spool, Waiting
from quota.wire import CHECK, CONSUME, RECORD, Ask, decision_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from quota.asking import Asker
    from quota.decision import Decision
    from quota.rules import Rules, Tier
    from quota.scripts import Client
    from quota.values import UsageRecord, User

__all__ = ["TALLY", "Outage", "is_away"]

TALLY = "outage"  # in the tallies of a shard: records that were admitted without Redis
USERS_MAX = 10_000  # whose last decision is remembered, for it shows the tier
_BATCH_MAX = 100  # records under way at once: two calls of the script at most wait behind them
_DELAY_S = 0.05  # between two attempts, doubled with each that fails
_DELAY_S_MAX = 2.0
_KEYS_LOGGED = 100  # in one line of the log
_AWAY = (RedisConnectionError, RedisTimeoutError, ReadOnlyError, ClusterDownError)
_REFUSED = (AuthenticationError, AuthorizationError)  # it is there, and will not have us
_log = logging.getLogger("quota")


def is_away(error: BaseException) -> bool:
    """Whether it was Redis that could not be reached, and not, say, PostgreSQL."""
    found: BaseException | None = error
    while isinstance(found, QuotaUnavailableError):
        found = found.__cause__
    return isinstance(found, _AWAY) and not isinstance(found, _REFUSED)


class Outage:
    """The policy of one client: what it admits by itself, and the task that records it."""

    def __init__(
        self, asker: Asker, redis: Client, *, timeout_s: float, spool: Spool | None = None
    ) -> None:
        self._asker = asker
        self._redis = redis
        self._timeout_s = timeout_s
        self._seen: dict[UUID, Decision] = {}
        self._spool = spool or Spool()
        self._task: asyncio.Task[None] | None = None
        self._redis_answers = asyncio.Event()

    def __len__(self) -> int:
        """How many records are not recorded yet."""
        return len(self._spool)

    def saw(self, user: User, decision: Decision) -> None:
        """Take note of a decision of Redis: of the user's tier, and that Redis answers."""
        if not decision.replayed:
            if len(self._seen) >= USERS_MAX and user.id not in self._seen:
                del self._seen[next(iter(self._seen))]
            self._seen[user.id] = decision
        if self._spool:
            self._redis_answers.set()

    def decide(self, ask: Ask, error: Exception, now_ms: int) -> list[Decision] | None:
        """The decisions on the lines of *ask*, which met *error*; None: it has to be unavailable.

        Raises:
            KeyConflictError, InvalidValueError: as Redis would.
        """
        if ask.verb not in (CONSUME, CHECK, RECORD) or not is_away(error):
            return None
        known = self._spool.find(ask.mark)
        if known is not None and known.ask.fingerprint != ask.fingerprint:
            raise KeyConflictError(ask.records[0].key)
        if known is None:
            if not self._fits(ask):
                return None
            if ask.verb != CHECK and not self._keep(ask, error, now_ms):
                return None
        at_ms = now_ms or time.time_ns() // 1_000_000
        return [_admitted(record, at_ms, replayed=known is not None) for record in ask.records]

    async def close(self, *, timeout_s: float) -> None:
        """Try once more, for *timeout_s* at most, and say what is lost."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._deliver()
        lost = self._spool.all()
        keys = [waiting.ask.records[0].key for waiting in lost]
        if lost:
            _log.error(
                "%d records that were admitted without Redis could not be recorded in time",
                len(lost),
            )
        for start in range(0, len(keys), _KEYS_LOGGED):
            _log.error(
                "not recorded: keys %s", " ".join(map(repr, keys[start : start + _KEYS_LOGGED]))
            )
        for waiting in lost:
            self._spool.drop(waiting)

    def _fits(self, ask: Ask) -> bool:
        """Whether the rules allow it, with all that was admitted here and is not recorded yet.

        Raises:
            InvalidValueError: an amount costs more than anyone can have, as ever.
        """
        rules, forced = self._asker.newest, ask.verb == RECORD
        if not rules.allow_on_outage:
            return False
        tiers = self._tiers_of(ask.user_id)
        for record in ask.records:
            most = min(rules.outage_max(tier, record.feature, forced=forced) for tier in tiers)
            if self._spool.units(ask.user_id, record.feature) + record.amount > most:
                return False
        return all(_payable(rules, tiers, record) for record in ask.records)

    def _tiers_of(self, user_id: UUID) -> Sequence[Tier]:
        """The tiers that the user may be on, by the limits of their last decision; else all.

        Of several, the strictest counts.
        """
        tiers = list(self._asker.newest.tiers.values())
        seen = self._seen.get(user_id)
        if seen is None:
            return tiers
        limits = tuple((state.per, state.mode, state.limit) for state in seen.limits)
        return [tier for tier in tiers if (tier.limits_of(seen.feature) or ()) == limits] or tiers

    def _keep(self, ask: Ask, error: Exception, now_ms: int) -> bool:
        if not self._spool.add(Waiting(ask, now_ms, time.monotonic())):
            _log.warning("no room to keep more records until Redis can be reached")
            return False
        if self._task is None or self._task.done():
            _log.warning("Redis can not be reached, usage is admitted without it: %s", error)
            self._task = asyncio.get_running_loop().create_task(self._deliver_all())
        return True

    async def _deliver_all(self) -> None:
        """Record what waits as soon as Redis answers; then the outage is over."""
        delay_s, recorded = _DELAY_S, 0
        while self._spool:
            self._redis_answers.clear()
            with suppress(TimeoutError):
                # Not all clients of a Redis that comes back at once.
                async with asyncio.timeout(delay_s * random.uniform(0.5, 1)):  # noqa: S311
                    await self._redis_answers.wait()
                    await asyncio.sleep(_DELAY_S)
            delivered = await self._deliver()
            recorded += delivered
            delay_s = _DELAY_S if delivered else min(2 * delay_s, _DELAY_S_MAX)
        _log.warning("Redis can be reached again: %d records were recorded afterwards", recorded)

    async def _deliver(self) -> int:
        """Send what waits until one has to wait longer; how many were recorded."""
        recorded = 0
        waiting = self._spool.all()
        try:
            offset_ms = await self._clock_offset_ms(waiting[0]) if waiting else 0
        except RedisError:
            return 0
        for start in range(0, len(waiting), _BATCH_MAX):
            batch = waiting[start : start + _BATCH_MAX]
            sent = [self._send(one, offset_ms) for one in batch]
            outcomes = await asyncio.gather(*sent, return_exceptions=True)
            done = [
                one
                for one, outcome in zip(batch, outcomes, strict=True)
                if self._is_settled(one, outcome)
            ]
            recorded += len(done)
            await self._tally(done)
            if any(outcome is not None and not isinstance(outcome, _FINAL) for outcome in outcomes):
                break
        return recorded

    async def _clock_offset_ms(self, waiting: Waiting) -> float:
        """What the server's clock has beyond our monotonic one."""
        at_ms = await self._asker.clock_ms(waiting.ask.records[0].user)
        return at_ms - 1000 * time.monotonic()

    async def _send(self, waiting: Waiting, offset_ms: float) -> None:
        if waiting.sent is None:
            occurred_at_ms = None if waiting.now_ms else int(offset_ms + 1000 * waiting.since_s)
            waiting.sent = _Afterwards(waiting.ask, occurred_at_ms)
        record = waiting.sent.records[0]
        at_ms, replies = await self._asker.answer(waiting.sent, record.user, waiting.now_ms)
        if not decision_of(replies[0], record, at_ms):
            raise InvalidValueError("amount", record.amount, "an amount that can be counted")

    def _is_settled(self, waiting: Waiting, outcome: BaseException | None) -> bool:
        """Whether it is recorded. If it never will be, that is said, and else it waits for its turn."""
        key = waiting.ask.records[0].key
        if outcome is None or isinstance(outcome, _FINAL):
            self._spool.drop(waiting)
        else:
            self._spool.put_last(waiting)
        if isinstance(outcome, _FINAL):
            _log.error("admitted without Redis, and can not be recorded: key %r: %s", key, outcome)
        elif outcome is not None and not isinstance(outcome, (RedisError, QuotaUnavailableError)):
            _log.error("not recorded yet: key %r", key, exc_info=outcome)
        return outcome is None

    async def _tally(self, recorded: Sequence[Waiting]) -> None:
        """Count for the dashboards, in Redis, as the script does."""
        shards = Counter(self._asker.keys.shard_of(one.ask.user_id).tallies for one in recorded)
        try:
            async with asyncio.timeout(self._timeout_s):
                for tallies, count in shards.items():
                    await self._redis.hincrby(tallies, TALLY, count)
        except (RedisError, TimeoutError) as error:
            _log.warning("%d records are not in the metric of outages: %s", len(recorded), error)


# What no further attempt changes.
_FINAL = (KeyConflictError, UnknownUserError, InvalidValueError)


def _payable(rules: Rules, tiers: Sequence[Tier], record: UsageRecord) -> bool:
    """Whether the record can be paid for on each of *tiers*.

    Raises:
        InvalidValueError: it can on none.
    """
    refusals = []
    for tier in tiers:
        try:
            rules.cost(
                tier.name,
                record.feature,
                amount=record.amount,
                format=record.format,
                quality=record.quality,
            )
        except InvalidValueError as error:
            refusals.append(error)
    if len(refusals) == len(tiers):
        raise refusals[0]
    return not refusals


class _Afterwards(Ask):
    """The record of a call that was admitted without Redis, which says when that was.

    It has the fingerprint of the call: if that was carried out after all, this one is a repeat of it.
    """

    __slots__ = ()

    def __init__(self, of: Ask, occurred_at_ms: int | None) -> None:
        super().__init__(RECORD, [_occurred(record, occurred_at_ms) for record in of.records])
        self.fingerprint = of.fingerprint


def _occurred(record: UsageRecord, at_ms: int | None) -> UsageRecord:
    """The record with its instant, if it has none of its own."""
    return record if record.occurred_at_ms is not None else replace(record, occurred_at_ms=at_ms)


def _admitted(record: UsageRecord, at_ms: int, *, replayed: bool) -> Decision:
    return LocalDecision(
        True, OK, record.feature, record.amount, 0, 0, (), at_ms, record.key, replayed
    )
