"""What producers do: each act is a function of seed, producer and number, so a repeat needs no memory.

A producer that was killed goes on with the same acts; every eighth is shared by all of them, which
makes concurrent duplicates; a tenth repeat an earlier one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from random import Random
from typing import TYPE_CHECKING
from uuid import UUID

from cli.demo.day import CONSUME, RECORD, Call
from cli.demo.people import busyness

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Act", "act_of"]

_SHARED_EVERY = 8
_REPEATS, _RECORDS, _RESERVES = 0.1, 0.15, 0.2  # shares of the acts; the rest consumes
_REPEATED_BACK_MAX = 400  # acts; at a few hundred a second, a repeat comes within seconds
_OWN_KEYS = 0.5  # the rest have UUIDv7 keys, as our client makes them
_TTL_S_MAX = 5  # of a hold: so that they expire while everything else goes on
_HELD_S_MAX = 1.5
_SURPLUS, _ABANDONED, _RELEASED = 0.15, 0.2, 0.4  # of the holds, cumulative; the rest commits less

_weights = cache(busyness)


@dataclass(frozen=True, slots=True)
class Act:
    """One call, or a reserve with its end: *units* to commit, None to release, -1 to leave it to its *ttl*."""

    number: int
    call: Call
    ttl: int = 0
    units: int | None = None
    held_s: float = 0.0

    @property
    def reserves(self) -> bool:
        """Whether it sets something aside first."""
        return self.ttl > 0


def act_of(number: int, *, producer: int, seed: int, began_ms: int, users: Sequence[str]) -> Act:
    """The act of this *number*, the same whenever it is asked for."""
    shared = number % _SHARED_EVERY == 0
    whose = "all" if shared else f"p{producer}"
    random = Random(f"{seed}:{whose}:{number}")  # noqa: S311 - a load that can be repeated is no secret
    if number and random.random() < _REPEATS:
        # Of a shared act all know the earlier one, if that is shared too.
        step = _SHARED_EVERY if shared else 1
        earlier = max(0, number - step * random.randint(1, _REPEATED_BACK_MAX // step))
        act = act_of(earlier, producer=producer, seed=seed, began_ms=began_ms, users=users)
        return Act(number, act.call, act.ttl, act.units, act.held_s)
    user = random.choices(users, cum_weights=_weights(len(users)))[0]
    own = random.random() < _OWN_KEYS
    key = f"{whose}-{number}" if own else _timed_key(began_ms + number, random)
    lot = random.random()
    if lot < _RECORDS:
        return Act(
            number, Call(RECORD, user, {"seconds": random.randint(1, 90), "sessions": 1}, key)
        )
    feature, amount, payload = _used(random)
    call = Call(CONSUME, user, {feature: amount}, key, payload)
    if lot >= _RECORDS + _RESERVES:
        return Act(number, call)
    units = _units(amount, random)
    return Act(number, call, random.randint(1, _TTL_S_MAX), units, random.uniform(0, _HELD_S_MAX))


def _used(random: Random) -> tuple[str, int, dict[str, str]]:
    feature = random.choices(("tokens", "chats", "image"), (3, 3, 1))[0]
    if feature == "image":
        return feature, 1, {"format": random.choice(("image", "video"))}
    return feature, random.randint(50, 1500) if feature == "tokens" else 1, {}


def _units(amount: int, random: Random) -> int | None:
    """How a hold ends: see `Act`."""
    lot = random.random()
    if lot < _SURPLUS:
        return amount + random.randint(1, 1 + amount // 4)
    if lot < _ABANDONED:
        return -1
    return None if lot < _RELEASED else random.randint(0, amount)


def _timed_key(at_ms: int, random: Random) -> str:
    digits = (at_ms << 80) | random.getrandbits(80)
    return str(UUID(int=digits & ~(0xF << 76) | (7 << 76) & ~(0x3 << 62) | (2 << 62)))
