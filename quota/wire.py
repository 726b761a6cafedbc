"""The form in which records go to the admit script and into the usage log, and answers come back.

`quota/lua/admit.lua` is the other side of this page: its header names every argument.
"""

from __future__ import annotations

import json
import re
import struct
from dataclasses import replace
from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING

from quota.decision import (
    CODES_ALLOWED,
    FEATURE_NOT_IN_TIER,
    HARD,
    INSUFFICIENT_CREDITS,
    LIMIT_EXCEEDED,
    OK,
    SOFT,
    SOFT_LIMIT,
    Decision,
    LimitState,
)
from quota.hold import Settlement
from quota.rules import per_name

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from quota.rules import Rules
    from quota.values import UsageRecord, User

__all__ = [
    "CHECK",
    "CONFLICT",
    "CONSUME",
    "END",
    "FULL",
    "INVALID",
    "LATE",
    "MISSING",
    "NO_HOLD",
    "RECORD",
    "RESERVE",
    "ROLL",
    "Ask",
    "Ending",
    "Reserving",
    "arguments",
    "decision_of",
    "end_mark_of",
    "ending_line",
    "mark_of",
    "settlement_of",
]

CONSUME, CHECK, RECORD, RESERVE, END = "c", "k", "r", "h", "s"
COMMIT, COMMIT_ALL, RELEASE = "sc", "sa", "sr"
MISSING, ROLL, CONFLICT, INVALID, NO_HOLD, LATE, FULL = 10, 11, 12, 13, 14, 15, 16
_CODES = {
    b"0": OK,
    b"1": SOFT_LIMIT,
    b"2": LIMIT_EXCEEDED,
    b"3": INSUFFICIENT_CREDITS,
    b"4": FEATURE_NOT_IN_TIER,
}
_MARK_BYTES = 16  # a collision among 10^9 remembered keys has odds of 1 in 10^20
_PLAIN = re.compile(r"[A-Za-z0-9._:-]+")
_NO_KIND, _NO_EXTRAS = ",null,null", [None] * 5
_FINGERPRINT_BYTES = 6  # tells two payloads of one key apart; not a defence against a forger


class Ask:
    """One record as it is asked of the script: lines that share a key and a fate.

    It is *repeatable* when its key may have been seen before: the caller chose it, or it was sent.
    """

    __slots__ = ("fingerprint", "lines", "mark", "records", "repeatable", "user_id", "verb", "word")

    def __init__(
        self, verb: str, records: Sequence[UsageRecord], *, repeatable: bool = True
    ) -> None:
        first = records[0]
        occurred_at_ms = first.occurred_at_ms
        self.word = verb if occurred_at_ms is None else f"{verb}@{occurred_at_ms}"
        self.repeatable = repeatable and verb != CHECK
        self.verb = verb
        self.records = records
        self.user_id = first.user.id
        self.mark = b"" if verb == CHECK else mark_of(first.user.id, first.key)
        self.lines = [_line(record, number) for number, record in enumerate(records)]
        payload = "\n".join(self.lines) if len(records) > 1 else self.lines[0]
        self.fingerprint = blake2b(payload.encode(), digest_size=_FINGERPRINT_BYTES).digest()

    def word_by(self, rules: Rules) -> str:  # noqa: ARG002 -- a reserve needs them
        """The verb with what it says more, which may depend on the prices."""
        return self.word

    def cost_by(self, record: UsageRecord, rules: Rules) -> str:
        """What a line costs, for every tier; where nobody can pay it, the script refuses this record alone."""
        return rules.cost_spec(
            record.feature, amount=record.amount, format=record.format, quality=record.quality
        )


class Reserving(Ask):
    """A record that is set aside for *ttl_ms* until its hold, named by its key, is ended."""

    __slots__ = ("ttl_ms",)

    def __init__(self, record: UsageRecord, *, ttl_ms: int, repeatable: bool) -> None:
        super().__init__(RESERVE, [record], repeatable=repeatable)
        self.ttl_ms = ttl_ms
        self.fingerprint = blake2b(
            f"{ttl_ms} {self.lines[0]}".encode(), digest_size=_FINGERPRINT_BYTES
        ).digest()

    def word_by(self, rules: Rules) -> str:
        """The ttl, the price of a unit by which a commit pays, the hold."""
        record = self.records[0]
        prices = rules.unit_spec(record.feature, format=record.format, quality=record.quality)
        return f"{RESERVE}{self.ttl_ms};{prices};{record.key}"


class Ending(Ask):
    """The end of a hold; *record* is what it comes to, *cost* in micro-credits. A repeat is answered as the first."""

    __slots__ = ("cost",)

    def __init__(self, op: str, record: UsageRecord, *, cost: int = 0) -> None:
        super().__init__(END, [record])
        self.word = op + record.key
        self.cost = cost
        self.mark = end_mark_of(record.user.id, record.key)

    def cost_by(self, record: UsageRecord, rules: Rules) -> str:  # noqa: ARG002 -- as in Ask
        """The cost by the price at which it was reserved, whatever the rules are now."""
        return str(self.cost)


def end_mark_of(user_id: UUID, key: str) -> bytes:
    """The mark under which the end of a hold is remembered; no key has a NUL."""
    return mark_of(user_id, f"{key}\0end")


def ending_line(user: User, feature: str, key: str) -> str:
    """The line by which the log says that a hold ended with nothing."""
    return f'[{_quoted(user.text)},"{feature}",0,{_key_text(key)},0]'


def mark_of(user_id: UUID, key: str) -> bytes:
    """The digest that stands for a user's key, in Redis and in PostgreSQL."""
    return blake2b(user_id.bytes + key.encode(), digest_size=_MARK_BYTES).digest()


def _line(record: UsageRecord, number: int) -> str:
    """A line of the usage log: user, feature, amount, key, number of the line; then what is given.

    Built by hand, because it is most of what a call costs in Python: the feature is plain by its
    pattern, and the rest goes through `json` unless it is known to be plain.
    """
    line = f'[{_quoted(record.user.text)},"{record.feature}",{record.amount},{_key_text(record.key)},{number}'
    kind = ""
    if record.format is not None or record.quality is not None:
        kind = f",{_quoted(record.format)},{_quoted(record.quality)}"
    extras = [
        record.occurred_at_ms,
        record.event_id,
        record.event_type,
        record.product_version,
        record.session_id,
    ]
    if record.metadata is None and extras == _NO_EXTRAS:
        return f"{line}{kind}]"
    tail = "" if extras == _NO_EXTRAS else "," + json.dumps(extras)[1:-1]
    return f"{line}{kind or _NO_KIND},{record.metadata or 'null'}{tail}]"


def _key_text(key: str) -> str:
    # Keys are many and seen once, so they stay out of the cache; most are UUIDs and plain.
    return f'"{key}"' if _PLAIN.fullmatch(key) else json.dumps(key)


@lru_cache(maxsize=16_384)
def _quoted(text: str | None) -> str:
    return json.dumps(text)


def arguments(
    asks: Sequence[Ask],
    rules: Rules,
    *,
    shards: int,
    now_ms: int,
    users: dict[UUID, int],
    place: int,
) -> list[str | bytes | int]:
    """ARGV of the admit script; fills *users* with the place in KEYS of each user's hash.

    Once they are made the asks count as sent: what is made of them again is looked up.
    """
    repeatable = [number for number, ask in enumerate(asks, 1) if ask.repeatable]
    head: list[str | bytes | int] = [now_ms, rules.version, shards, len(asks), len(repeatable)]
    head += [ask.mark for ask in asks]
    head += repeatable
    for ask in asks:
        at = users.setdefault(ask.user_id, place + len(users))
        left = len(ask.lines)
        ask.repeatable = ask.verb != CHECK
        word = ask.word_by(rules)
        for record, line in zip(ask.records, ask.lines, strict=True):
            cost = ask.cost_by(record, rules)
            head += (left, at, word, record.feature, record.amount, cost, ask.fingerprint, line)
            left -= 1
    return head


def settlement_of(reply: bytes, record: UsageRecord, now_ms: int) -> Settlement:
    """How a hold ended, or that it did not, because the surplus was denied."""
    replayed = reply.startswith(b"=")
    status, _, rest = (reply[1:] if replayed else reply).partition(b";")
    if status == b"open":
        surplus, _, denial = rest.partition(b";")
        asked = replace(record, amount=int(surplus))
        return Settlement(record.key, "open", 0, 0, decision=decision_of(denial, asked, now_ms))
    amount, _, cost = rest.partition(b";")
    return Settlement(record.key, status.decode(), int(amount), int(cost), replayed)


def decision_of(reply: bytes, record: UsageRecord, now_ms: int) -> Decision:
    """The decision that one line of a reply says."""
    replayed = reply.startswith(b"=")
    head, _, numbers = reply.partition(b"|")
    code, cost, credits_micro, limits = (head[1:] if replayed else head).split(b";", 3)
    named = _CODES[code]
    return Decision(
        named in CODES_ALLOWED,
        named,
        record.feature,
        record.amount,
        int(cost),
        int(credits_micro),
        _states(limits, numbers) if limits else (),
        now_ms,
        record.key,
        replayed,
    )


def _states(limits: bytes, numbers: bytes) -> tuple[LimitState, ...]:
    form, of_rule = _limits(limits)
    values = form.unpack(numbers)
    states = []
    at = 0
    for per, mode, most in of_rule:
        used = int(values[at + 1])
        remaining = None if most is None else most - used if used < most else 0
        states.append(LimitState(per, mode, used, most, remaining, int(values[at]) or None))
        at += 2
    return tuple(states)


@lru_cache(maxsize=4_096)
def _limits(text: bytes) -> tuple[struct.Struct, list[tuple[str, str, int | None]]]:
    """A rule's line as the script answers it, with the form of the counters behind it."""
    limits = []
    for entry in text.decode().split(";"):
        code, mode, most = entry.split(",")
        limits.append(
            (per_name(code), HARD if mode == HARD[0] else SOFT, None if most == "-1" else int(most))
        )
    return struct.Struct(f"<{2 * len(limits)}d"), limits
