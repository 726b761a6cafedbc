"""A user's standing moved over an instant: credits that change by themselves, holds that expire.

Pure: what was read goes in, what shall be stored comes out. The roll script puts it in place, if
nothing moved meanwhile, and logs the holds that ended.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quota.held import FIELD, Held
from quota.rules import per_code
from quota.standing import Profile, read_counters, standing_fields

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from quota.account import Account

__all__ = ["Rolled", "account_at", "held_of", "rolled"]

COUNTED = (b"f:", b"p:")  # fields of counters: of the running periods, and of those before


@dataclass(frozen=True, slots=True)
class Rolled:
    """What the quota hash and the profile shall be; *ended* are the holds that expired, in order."""

    fields: Mapping[bytes, str | bytes]
    gone: Sequence[bytes]
    profile: str
    ended: Sequence[Held]
    due_at_ms: int | None  # when the next hold expires


def held_of(fields: Mapping[bytes, bytes]) -> list[Held]:
    """The open holds of a quota hash, in the order in which they expire."""
    prefix = FIELD.encode()
    holds = [
        Held.load(name[len(prefix) :].decode(), text)
        for name, text in fields.items()
        if name.startswith(prefix)
    ]
    return sorted(holds, key=lambda held: (held.expires_at_ms, held.key))


def account_at(fields: Mapping[bytes, bytes], profile: Profile, *, at_ms: int) -> Account:
    """The account that the hash and its profile tell, with the holds that are over by *at_ms* ended."""
    account = profile.account(int(fields[b"c"]), fields.get(b"j", b""))
    for held in held_of(fields):
        if held.expires_at_ms <= at_ms:
            account.advance(held.expires_at_ms)
            if held.key in account.holds:
                account.settle(held.key, 0)
    account.advance(at_ms)
    return account


def rolled(fields: Mapping[bytes, bytes], profile_text: bytes, *, at_ms: int) -> Rolled:
    """What the standing in *fields* and *profile_text* has become at *at_ms*."""
    epoch, _, tier, allowance = fields[b"h"].decode().split(",", 3)
    profile = Profile.load(profile_text)
    account = account_at(fields, profile, at_ms=at_ms)
    holds = held_of(fields)
    ended = [held for held in holds if held.expires_at_ms <= at_ms]
    open_ = holds[len(ended) :]
    texts = standing_fields(
        profile.calendar,
        account,
        open_,
        epoch=int(epoch),
        tier=tier,
        allowance=allowance,
        at_ms=at_ms,
    )
    new: dict[bytes, str | bytes] = {name.encode(): text for name, text in texts.items()}
    new.update(counters_without(fields, ended))
    return Rolled(
        new,
        [b"j", *((FIELD + held.key).encode() for held in ended)],
        Profile.of(profile.calendar, account, at_ms=at_ms).dump(),
        ended,
        min((held.expires_at_ms for held in open_), default=None),
    )


def counters_without(
    fields: Mapping[bytes, bytes], ended: Sequence[Held]
) -> dict[bytes, str | bytes]:
    """The counters that held the units of *ended*, without them; a period that is over is left alone."""
    changed: dict[bytes, str | bytes] = {}
    for held in ended:
        for prefix in COUNTED:
            name = prefix + held.feature.encode()
            line = changed.get(name, fields.get(name))
            if line is not None:
                assert isinstance(line, bytes)
                changed[name] = _without(line, held)
    return changed


def _without(line: bytes, held: Held) -> bytes:
    numbers: list[int] = []
    counters = read_counters(line)
    for per, end_ms, used in counters:
        counted = held.ends.get(per) == end_ms
        numbers += (end_ms, max(0, used - held.amount) if counted else used)
    sign = ",".join(per_code(per) for per, _, _ in counters)
    return sign.encode() + b"|" + struct.pack(f"<{len(numbers)}d", *numbers)
