"""The Redis client: every verb of DESIGN 8 that an application calls."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from typing import TYPE_CHECKING, Any, Self

from redis.asyncio import Redis
from redis.exceptions import RedisError

from quota.balance import Balance, balance_of
from quota.decision import UNAVAILABLE, UNKNOWN_USER, Decision
from quota.errors import (
    InvalidValueError,
    KeyConflictError,
    QuotaError,
    QuotaUnavailableError,
    UnknownUserError,
)
from quota.gate import NO_RULES, Gate, NotReadyError
from quota.keys import PREFIX_DEFAULT, SHARDS_DEFAULT, Keys
from quota.loading import RequestLoader
from quota.receipt import Receipt
from quota.rules import Rules
from quota.scripts import ScriptCaller, script
from quota.standing import Profile, head_text, windows_text
from quota.values import AMOUNT_MAX, instant_ms, parse_instant, parse_user_id, usage_record
from quota.wire import CHECK, CONFLICT, CONSUME, MISSING, RECORD, ROLL, Ask, decision_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from quota.gate import Answer
    from quota.keys import ShardKeys
    from quota.loading import Loader
    from quota.scripts import Client
    from quota.values import UsageRecord, User

__all__ = ["Quota"]

TIMEOUT_S = 1.0  # for one call to Redis; a gate that is slower than this is down
LOAD_TIMEOUT_S = 5.0  # for a user that is not in Redis; a worker answers in milliseconds
USER_TTL_MS = 7 * 24 * 3600 * 1000  # an idle user leaves Redis after a week, and is loaded again
_TRIES_MAX = (
    1_000  # load, roll, other rules: each can come in the way; the load's deadline ends it sooner
)
_TRIES_MIN = 3  # however slow each was
_RETRY_DELAY_S_MAX = 0.1
_RETRY_DELAY_S = 0.005  # while somebody else loads the user

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
    ) -> None:
        self._redis = redis
        self._owns_redis = False
        self._timeout_s = timeout_s
        self._load_timeout_s = load_timeout_s
        self._loader = loader or RequestLoader(redis, timeout_s=load_timeout_s)
        self._prefix = prefix
        self._open(shards)

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
        """Finish the calls that wait and give the connections back."""
        for gate in self._gates:
            await gate.close()
        if self._owns_redis:
            await self._redis.aclose()

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
        now_ms, record = _record(user_id, feature, amount, now=now, payload=payload)
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
        now_ms, record = _record(user_id, feature, amount, now=now, payload=payload)
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
        now_ms = _now_ms(now)
        answers: list[Decision | QuotaError] = []
        asked: list[tuple[int, UsageRecord, Ask, asyncio.Future[Answer]]] = []
        for place, call in enumerate(calls):
            answers.append(_NO_ANSWER)
            try:
                arguments = {"amount": 1, "feature": None, **call}
                record = usage_record(now_ms=now_ms or _wall_ms(), **arguments)
            except InvalidValueError as error:
                answers[place] = error
            except TypeError as error:
                answers[place] = InvalidValueError(
                    "call", call, f"the arguments of consume ({error})"
                )
            else:
                ask = Ask(CONSUME, [record], repeatable=call.get("key") is not None)
                asked.append(
                    (place, record, ask, self._gate_of(record.user).enqueue(ask, now_ms=now_ms))
                )
        outcomes = await asyncio.gather(*(future for *_, future in asked), return_exceptions=True)
        again: list[tuple[int, UsageRecord, Ask, Answer | NotReadyError | None]] = []
        for (place, record, ask, _), outcome in zip(asked, outcomes, strict=True):
            if not isinstance(outcome, BaseException) and isinstance(outcome[1][0], bytes):
                answers[place] = decision_of(outcome[1][0], record, outcome[0])
            else:
                again.append(
                    (
                        place,
                        record,
                        ask,
                        outcome if isinstance(outcome, (NotReadyError, tuple)) else None,
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
        now_ms, records = _records(user_id, feature, amount, now=now, payload=payload)
        ask = Ask(RECORD, records, repeatable=payload.get("key") is not None)
        try:
            at_ms, replies = await self._answer(ask, records[0].user, now_ms)
        except RedisError as error:
            raise QuotaUnavailableError(str(error)) from error
        lines = [
            decision_of(reply, record, at_ms)
            for reply, record in zip(replies, records, strict=True)
        ]
        if not lines[0]:
            raise InvalidValueError(
                "amount", lines[0].amount, f"an amount that keeps the count below {AMOUNT_MAX}"
            )
        return Receipt(len(lines), lines[0].replayed, records[0].key, tuple(lines))

    async def balance(self, user_id: object, *, now: datetime | None = None) -> Balance:
        """Credits, grants in burn order and every limit, as Redis has them.

        Raises:
            UnknownUserError, QuotaUnavailableError
        """
        user, now_ms = parse_user_id(user_id), _now_ms(now)
        try:
            stored, at_ms = await self._read(user, now_ms)
            return balance_of(stored, await self._rules_for(user), at_ms=at_ms)
        except RedisError as error:
            raise QuotaUnavailableError(str(error)) from error

    def _open(self, shards: int) -> None:
        self._keys = Keys(self._prefix, shards)
        self._gates = [
            Gate(keys, self._redis, shards=shards, timeout_s=self._timeout_s)
            for keys in self._keys.shards
        ]

    def _gate_of(self, user: User) -> Gate:
        return self._gates[self._keys.shard_of(user.id).index]

    async def _decide(
        self,
        ask: Ask,
        record: UsageRecord,
        now_ms: int,
        first: Answer | NotReadyError | None = None,
    ) -> Decision:
        try:
            at_ms, replies = await self._answer(ask, record.user, now_ms, first)
        except UnknownUserError:
            return _undecided(UNKNOWN_USER, record, now_ms)
        except (RedisError, QuotaUnavailableError) as error:
            _log.warning("quota unavailable: %s", error)
            return _undecided(UNAVAILABLE, record, now_ms)
        return decision_of(replies[0], record, at_ms)

    async def _answer(
        self, ask: Ask, user: User, now_ms: int, outcome: Answer | NotReadyError | None = None
    ) -> tuple[int, list[bytes]]:
        """Ask until there is an answer, mending what is in the way."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._load_timeout_s
        for attempt in range(_TRIES_MAX):
            if attempt > _TRIES_MIN and loop.time() > until:
                break
            if outcome is None:
                try:
                    outcome = await self._gate_of(user).admit(ask, now_ms=now_ms)
                except NotReadyError as error:
                    outcome = error
            if isinstance(outcome, NotReadyError):
                await self._mend(self._keys.shard_of(user.id), outcome)
            else:
                at_ms, replies = outcome
                if isinstance(replies[0], bytes):
                    return at_ms, replies  # type: ignore[return-value]
                await self._clear(
                    replies[0], ask, user, now_ms=now_ms, at_ms=at_ms, attempt=attempt
                )
            outcome = None
        raise QuotaUnavailableError(
            f"no decision within {self._load_timeout_s} s: the user keeps being reloaded"
        )

    async def _clear(
        self, outcome: object, ask: Ask, user: User, *, now_ms: int, at_ms: int, attempt: int
    ) -> None:
        """Do away with the outcome that kept the script from deciding."""
        if outcome == MISSING:
            if attempt > 1:
                await asyncio.sleep(min(_RETRY_DELAY_S * attempt, _RETRY_DELAY_S_MAX))
            if not await self._loader.load(self._keys, user, now_ms=now_ms):
                raise UnknownUserError(user.text)
        elif outcome == ROLL:
            await self._roll(user, at_ms)
        elif outcome == CONFLICT:
            raise KeyConflictError(ask.records[0].key)
        else:
            rules = self._gate_of(user).rules
            for record in ask.records:  # finds and names the amount that no price can be paid for
                rules.cost_spec(
                    record.feature,
                    amount=record.amount,
                    format=record.format,
                    quality=record.quality,
                )
            raise QuotaUnavailableError("the stored state of this user is not valid")

    async def _roll(self, user: User, at_ms: int) -> None:
        """Put the user into the windows and credits of *at_ms*; one of many at once succeeds."""
        keys = self._keys.shard_of(user.id)
        caller = ScriptCaller(self._redis, timeout_s=self._timeout_s)
        names = [keys.user_of(user.id.hex), keys.grants_of(user.id.hex)]
        try:
            _, _, profile_text, *texts = await caller.call(
                script("read"), [keys.meta, *names], [at_ms]
            )
            stored = dict(zip(texts[::2], texts[1::2], strict=True))
            if b"h" not in stored:
                return  # it left Redis meanwhile: the next try loads it
            if not profile_text:  # half of it did: so shall the rest
                await caller.call(script("forget"), [*names, keys.token_of(user.id.hex)], [])
                return
            epoch, _, tier = stored[b"h"].decode().split(",", 2)
            profile = Profile.load(profile_text)
            account = profile.account(int(stored[b"c"]))
            account.repay(at_ms=at_ms)
            rolled = Profile.of(profile.calendar, account, at_ms=at_ms)
            head = head_text(
                epoch=int(epoch), valid_until_ms=account.valid_until_ms(at_ms=at_ms), tier=tier
            )
            windows = windows_text(profile.calendar, at_ms)
            arguments = [
                stored[b"h"],
                stored[b"c"],
                stored[b"w"],
                profile_text,
                head,
                rolled.net,
                windows,
                rolled.dump(),
                USER_TTL_MS,
            ]
            await caller.call(script("roll"), names, arguments)
        finally:
            await caller.close()

    async def _read(self, user: User, now_ms: int) -> tuple[list[Any], int]:
        """The reply of read.lua for a user that is in Redis."""
        caller = ScriptCaller(self._redis, timeout_s=self._timeout_s)
        try:
            for _ in range(_TRIES_MAX):
                keys = self._keys.shard_of(user.id)
                names = [keys.meta, keys.user_of(user.id.hex), keys.grants_of(user.id.hex)]
                reply = await caller.call(script("read"), names, [now_ms])
                epoch, texts = reply[1], reply[3:]
                if not epoch:
                    await self._mend(keys, NotReadyError("epoch"))
                elif (
                    b"h" in texts[::2]
                    and texts[texts.index(b"h") + 1].startswith(epoch + b",")
                    and reply[2]
                ):
                    return reply, reply[0]
                elif not await self._loader.load(self._keys, user, now_ms=now_ms):
                    raise UnknownUserError(user.text)
        finally:
            await caller.close()
        raise QuotaUnavailableError("the user keeps being reloaded")

    async def _rules_for(self, user: User) -> Rules:
        gate = self._gate_of(user)
        if gate.rules is NO_RULES:
            await self._mend(self._keys.shard_of(user.id), NotReadyError("rules"))
        return gate.rules

    async def _mend(self, shard: ShardKeys, why: NotReadyError) -> None:
        """Fetch what the script said is missing or has changed; one caller does it for all."""
        gate = self._gates[shard.index]
        if gate.mending is None:
            gate.mending = asyncio.ensure_future(self._mend_gate(gate, shard, why))
        try:
            # Everyone who waits shares the attempt and its end; nobody who leaves ends it.
            await asyncio.shield(gate.mending)
        except TimeoutError:
            raise QuotaUnavailableError(f"shard {shard.index} can not be loaded in time") from None

    async def _mend_gate(self, gate: Gate, shard: ShardKeys, why: NotReadyError) -> None:
        try:
            async with asyncio.timeout(self._load_timeout_s + self._timeout_s):
                if why.word == "shards" and why.found:
                    await self._reopen(why.found)
                elif why.word == "epoch" or not await self._fetch_rules(shard):
                    await self._loader.load_shard(self._keys, shard)
        finally:
            gate.mending = None

    async def _reopen(self, shards: int) -> None:
        if shards != len(self._gates):
            gates = self._gates
            self._open(shards)
            for gate in gates:
                await gate.close()

    async def _fetch_rules(self, shard: ShardKeys) -> bool:
        text = await self._redis.hget(shard.rules, "#document")
        if text is None:
            return False
        stored = json.loads(text)
        rules = Rules.from_document(
            stored["document"],
            version=stored["version"],
            applied_at_ms=stored.get("applied_at_ms", 0),
        )
        self._gates[shard.index].rules = rules
        return True


_NO_ANSWER = QuotaError("not asked yet")


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


def _now_ms(now: datetime | None) -> int:
    """*now* in milliseconds; 0 stands for the server's clock."""
    return 0 if now is None else instant_ms(parse_instant(now, field="now"))


def _record(
    user_id: object,
    feature: object,
    amount: object,
    *,
    now: datetime | None,
    payload: dict[str, Any],
) -> tuple[int, UsageRecord]:
    now_ms = 0 if now is None else _now_ms(now)
    return now_ms, usage_record(user_id, feature, amount, now_ms=now_ms or _wall_ms(), **payload)


def _records(
    user_id: object,
    feature: object,
    amount: object,
    *,
    now: datetime | None,
    payload: dict[str, Any],
) -> tuple[int, list[UsageRecord]]:
    if not isinstance(feature, dict):
        now_ms, record = _record(user_id, feature, amount, now=now, payload=payload)
        return now_ms, [record]
    if not 1 <= len(feature) <= _FEATURES_MAX:
        raise InvalidValueError(
            "features", feature, f"1 to {_FEATURES_MAX} features and their amounts"
        )
    records: list[UsageRecord] = []
    now_ms = 0
    for name, units in sorted(feature.items(), key=str):  # one payload, however it is spelled
        if records:
            payload = {**payload, "key": records[0].key}
        now_ms, record = _record(user_id, name, units, now=now, payload=payload)
        records.append(record)
    return now_ms, records


_FEATURES_MAX = 100  # in one record: they travel and are applied together


def _undecided(code: str, record: UsageRecord, now_ms: int) -> Decision:
    return Decision(
        False, code, record.feature, record.amount, 0, 0, (), now_ms or _wall_ms(), record.key
    )
