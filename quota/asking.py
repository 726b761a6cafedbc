"""Asks the admit script until there is an answer, and mends what is in the way of one.

A user that is not in Redis is loaded, an instant that passed is rolled over, a shard that is lost or
has other rules is fetched. Each is done by one of all who wait for it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from redis.exceptions import ResponseError

from quota.balance import UNREADABLE, is_readable
from quota.errors import (
    KeyConflictError,
    QuotaUnavailableError,
    UnknownHoldError,
    UnknownUserError,
)
from quota.gate import NO_RULES, Gate, NotReadyError, shards_in
from quota.held import FIELD, Held
from quota.keys import Keys
from quota.rolling import rolled
from quota.rules import Rules
from quota.scripts import ScriptCaller, script
from quota.standing import Profile, counter_sign
from quota.wire import (
    CONFLICT,
    END,
    FULL,
    LATE,
    MISSING,
    NO_HOLD,
    ROLL,
    end_mark_of,
    ending_line,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

    from quota.gate import Answer
    from quota.keys import ShardKeys
    from quota.loading import Loader
    from quota.rolling import Rolled
    from quota.scripts import Argument, Client
    from quota.values import User
    from quota.wire import Ask

__all__ = ["USER_TTL_MS", "Asker"]

USER_TTL_MS = 7 * 24 * 3600 * 1000  # an idle user leaves Redis after a week, and is loaded again
_TRIES_MAX = (
    1_000  # load, roll, other rules: each can come in the way; the load's deadline ends it sooner
)
_TRIES_MIN = 3  # however slow each was
_RETRY_DELAY_S_MAX = 0.1
_RETRY_DELAY_S = 0.005  # while somebody else loads the user


class Asker:
    """The way to every shard of one installation."""

    def __init__(
        self,
        redis: Client,
        loader: Loader,
        *,
        prefix: str,
        shards: int,
        timeout_s: float,
        load_timeout_s: float,
    ) -> None:
        self._redis = redis
        self._loader = loader
        self._prefix = prefix
        self._timeout_s = timeout_s
        self._load_timeout_s = load_timeout_s
        self._rolls: dict[UUID, asyncio.Future[None]] = {}
        self.newest = NO_RULES  # of the rules that any shard was seen to have
        self.allow_on_outage = False  # by these
        self._open(shards)

    async def close(self) -> None:
        """Finish the calls that wait and give the connections back."""
        for gate in self._gates:
            await gate.close()

    def gate_of(self, user: User) -> Gate:
        """The gate of the user's shard."""
        return self._gates[self.keys.shard_of(user.id).index]

    async def answer(
        self, ask: Ask, user: User, now_ms: int, outcome: Answer | NotReadyError | None = None
    ) -> tuple[int, list[bytes]]:
        """Ask until there is an answer, mending what is in the way; *outcome* is one that came already.

        Raises:
            QuotaError, RedisError
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + self._load_timeout_s
        for attempt in range(_TRIES_MAX):
            if attempt > _TRIES_MIN and loop.time() > until:
                break
            if outcome is None:
                try:
                    outcome = await self.gate_of(user).admit(ask, now_ms=now_ms)
                except NotReadyError as error:
                    outcome = error
            if isinstance(outcome, NotReadyError):
                await self._mend(self.keys.shard_of(user.id), outcome)
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

    async def roll(self, user: User, at_ms: int) -> None:
        """Put the user into the windows, credits and holds of *at_ms*, or join who is at it."""
        rolling = self._rolls.get(user.id)
        if rolling is None:
            rolling = self._rolls[user.id] = asyncio.ensure_future(self._roll(user, at_ms))
            rolling.add_done_callback(lambda _: self._rolls.pop(user.id, None))
        await asyncio.shield(rolling)

    async def _roll(self, user: User, at_ms: int) -> None:
        keys = self.keys.shard_of(user.id)
        caller = ScriptCaller(self._redis, timeout_s=self._timeout_s)
        names = [keys.user_of(user.id.hex), keys.grants_of(user.id.hex)]
        try:
            _, _, profile, *texts = await caller.call(script("read"), [keys.meta, *names], [at_ms])
            fields = dict(zip(texts[::2], texts[1::2], strict=True))
            if b"h" not in fields:
                return  # it left Redis meanwhile: the next try loads it
            try:
                new = rolled(fields, profile, at_ms=at_ms) if Profile.readable(profile) else None
            except UNREADABLE:
                new = None
            if new is None:  # half of it left, or an older version or another hand wrote it
                await caller.call(script("forget"), [*names, keys.token_of(user.id.hex)], [])
                return
            arguments = _roll_arguments(user, fields, profile, new, at_ms=at_ms)
            heads = [*names, keys.log, keys.meta, keys.due, *keys.marks, keys.tallies]
            await caller.call(script("roll"), heads, arguments)
        finally:
            await caller.close()

    async def clock_ms(self, user: User) -> int:
        """The instant by the server of the user's shard.

        Raises:
            RedisError
        """
        keys = self.keys.shard_of(user.id)
        names = [keys.meta, keys.user_of(user.id.hex), keys.grants_of(user.id.hex)]
        caller = ScriptCaller(self._redis, timeout_s=self._timeout_s)
        try:
            at_ms: int = (await caller.call(script("read"), names, [0]))[0]
            return at_ms
        finally:
            await caller.close()

    async def held(self, user: User, key: str) -> Held | None:
        """An open hold of a user that is in Redis; None too where it can not be read, which the script mends."""
        keys = self.keys.shard_of(user.id)
        try:
            text = await self._redis.hget(keys.user_of(user.id.hex), FIELD + key)
            return None if text is None else Held.load(key, text)
        except (ResponseError, ValueError):
            return None

    async def read(self, user: User, now_ms: int) -> tuple[list[Any], int]:
        """The reply of read.lua for a user that is in Redis, loaded if need be; and its instant.

        Raises:
            UnknownUserError, QuotaUnavailableError, RedisError
        """
        caller = ScriptCaller(self._redis, timeout_s=self._timeout_s)
        try:
            for attempt in range(_TRIES_MAX):
                keys = self.keys.shard_of(user.id)
                names = [keys.meta, keys.user_of(user.id.hex), keys.grants_of(user.id.hex)]
                reply = await caller.call(script("read"), names, [now_ms])
                epoch, fields = reply[1], dict(zip(reply[3::2], reply[4::2], strict=True))
                if not epoch:
                    await self._mend(keys, NotReadyError("epoch"))
                elif not fields.get(b"h", b"").startswith(epoch + b","):
                    await self._load(user, now_ms=now_ms, attempt=attempt, make=False)
                elif not is_readable(reply):
                    await caller.call(
                        script("forget"), [*names[1:], keys.token_of(user.id.hex)], []
                    )
                elif attempt > _TRIES_MIN or await self._made_by_rules_in_force(user, fields):
                    return reply, reply[0]
                else:
                    await caller.call(
                        script("forget"), [*names[1:], keys.token_of(user.id.hex)], []
                    )
        finally:
            await caller.close()
        raise QuotaUnavailableError("the user keeps being reloaded")

    async def rules_for(self, user: User) -> Rules:
        """The rules in force in the user's shard."""
        gate = self.gate_of(user)
        if gate.rules is NO_RULES:
            await self._mend(self.keys.shard_of(user.id), NotReadyError("rules"))
        return gate.rules

    async def _made_by_rules_in_force(self, user: User, fields: Mapping[bytes, bytes]) -> bool:
        """Whether counters and credits are those of the rules in force, which are fetched if they are new.

        The script finds out by itself when it decides; who only reads would show what was.
        """
        gate = self.gate_of(user)
        if fields[b"#rules"] != b"%d" % gate.rules.version:
            await self._mend(self.keys.shard_of(user.id), NotReadyError("rules"))
        _, _, name, allowance = fields[b"h"].decode().split(",", 3)
        tier = gate.rules.tiers.get(name)
        if tier is None:
            return True
        return tier.allowance_text == allowance and all(
            line.startswith(counter_sign(tier.limits_of(field[2:].decode()) or ()))
            for field, line in fields.items()
            if field.startswith(b"f:")
        )

    def _open(self, shards: int) -> None:
        self.keys = Keys(self._prefix, shards)
        self._gates = [
            Gate(keys, self._redis, shards=shards, timeout_s=self._timeout_s)
            for keys in self.keys.shards
        ]

    async def _clear(
        self, outcome: object, ask: Ask, user: User, *, now_ms: int, at_ms: int, attempt: int
    ) -> None:
        """Do away with the outcome that kept the script from deciding."""
        if outcome in (MISSING, LATE):
            late, make = outcome == LATE, ask.verb != END
            await self._load(user, now_ms=now_ms, attempt=attempt, late=late, make=make)
        elif outcome == ROLL:
            await self.roll(user, at_ms)
        elif outcome == CONFLICT:
            raise KeyConflictError(ask.records[0].key)
        elif outcome == NO_HOLD:
            raise UnknownHoldError(ask.records[0].key)
        elif outcome == FULL:
            raise QuotaUnavailableError(
                "the usage log has as many bytes as LOG_BYTES_MAX lets it have: is it applied?"
            )
        else:
            await self._refuse_what_no_one_can_pay(ask, user, now_ms)
            raise QuotaUnavailableError("the stored state of this user is not valid")

    async def _refuse_what_no_one_can_pay(self, ask: Ask, user: User, now_ms: int) -> None:
        """Find and name the amount whose cost, on the tier of the user, is more than anyone can have."""
        reply, _ = await self.read(user, now_ms)
        fields = dict(zip(reply[3::2], reply[4::2], strict=True))
        tier = fields[b"h"].decode().split(",", 3)[2]
        rules = self.gate_of(user).rules
        for one in ask.records:
            rules.cost(tier, one.feature, amount=one.amount, format=one.format, quality=one.quality)

    async def _load(
        self, user: User, *, now_ms: int, attempt: int, make: bool, late: bool = False
    ) -> None:
        if attempt > 1:
            await asyncio.sleep(min(_RETRY_DELAY_S * attempt, _RETRY_DELAY_S_MAX))
        if not await self._loader.load(self.keys, user, now_ms=now_ms, late=late, make=make):
            raise UnknownUserError(user.text)

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
                shards = why.found or await self._shards_elsewhere(shard)
                if shards != len(self._gates):
                    await self._reopen(shards)
                elif why.word in ("epoch", "shards") or not await self._fetch_rules(shard):
                    await self._loader.load_shard(self.keys, shard)
        finally:
            gate.mending = None

    async def _shards_elsewhere(self, shard: ShardKeys) -> int:
        """How many shards there are by the first one, which there always is: *shard* may be none of them."""
        found = await self._redis.hget(self.keys.shards[0].meta, "shards") if shard.index else None
        return shards_in(found) or len(self._gates)

    async def _reopen(self, shards: int) -> None:
        gates = self._gates
        self._open(shards)
        for gate in gates:
            await gate.close()

    async def _fetch_rules(self, shard: ShardKeys) -> bool:
        text = await self._redis.hget(shard.rules, "#document")
        rules = None if text is None else Rules.published(text)
        if rules is None:
            return False
        self._gates[shard.index].rules = rules
        if rules.version >= self.newest.version:
            self.newest, self.allow_on_outage = rules, rules.allow_on_outage
        return True


_READ = (b"h", b"c", b"w", b"j", b"n")  # besides these, what the roll changes


def _roll_arguments(
    user: User, fields: Mapping[bytes, bytes], profile: bytes, new: Rolled, *, at_ms: int
) -> list[Argument]:
    """ARGV of the roll script."""
    names = dict.fromkeys([*_READ, *new.fields, *new.gone])
    read = [text for name in names for text in (name, fields.get(name, b""))]
    put = [text for field in new.fields.items() for text in field]
    kinds = ",".join(f"x{held.expires_at_ms}" for held in new.ended)
    lines = ",".join(ending_line(user, held.feature, held.key) for held in new.ended)
    ended: list[Argument] = [kinds, "0," * len(new.ended), f"[{lines}]"] if new.ended else []
    for held in new.ended:
        ended += [end_mark_of(user.id, held.key), "expired;0;0"]
    epoch = fields[b"h"].partition(b",")[0]
    return [
        epoch,
        at_ms,
        USER_TTL_MS,
        profile,
        new.profile,
        user.text,
        new.due_at_ms or 0,
        *_counted(read),
        *_counted(put),
        *_counted(list(new.gone)),
        len(new.ended),
        *ended,
    ]


def _counted(texts: list[Any]) -> list[Argument]:
    return [len(texts), *texts]
