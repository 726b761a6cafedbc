"""A realistic day of use as a stream of calls, the same for the same seed."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from quota.values import new_key

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from random import Random

    from cli.demo.people import Person

__all__ = ["CHECK", "CONSUME", "RECORD", "Call", "day_of_use"]

CONSUME, CHECK, RECORD = "consume", "check", "record"

# Feature, how often it is used, and the least and most units at once.
_FEATURES = (
    ("tokens", 25, 50, 4_000),
    ("conversations", 14, 1, 1),
    ("seconds", 14, 15, 600),
    ("feature_recommendations", 12, 1, 1),
    ("image_generation", 10, 1, 2),
    ("completed_sessions", 8, 1, 1),
    ("calendar_follow_event", 6, 1, 1),
    ("custom_phrases_created", 5, 1, 3),
    ("anki_exports", 3, 1, 1),
    ("advanced_voice_seconds", 3, 10, 300),
)
_WEIGHTS = [weight for _, weight, _, _ in _FEATURES]
_CHECKS, _RECORDS = 0.02, 0.04  # shares of the calls; the rest consumes
_REPEATS, _CONFLICTS = 0.03, 0.005
_OWN_KEYS = 0.3  # the rest have UUIDv7 keys, as our client makes them
_REMEMBERED = 2_000  # calls, of which one may be repeated
_METADATA_FORMS = 50  # kinds of events; a day has few


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the client: the amounts by feature, several only for `record`."""

    verb: str
    user: str
    amounts: dict[str, int]
    key: str
    payload: dict[str, Any] = field(default_factory=dict)

    @property
    def feature(self) -> str:
        """The (first) feature that is used."""
        return next(iter(self.amounts))

    def arguments(self) -> dict[str, Any]:
        """As `consume` takes them, by name."""
        feature = self.feature
        return {
            "user_id": self.user,
            "feature": feature,
            "amount": self.amounts[feature],
            "key": self.key,
            **self.payload,
        }


def day_of_use(
    everybody: Sequence[Person], weights: list[float], count: int, random: Random
) -> Iterator[Call]:
    """*count* calls: some repeat an earlier key, and a few use one for something else."""
    past: deque[Call] = deque(maxlen=_REMEMBERED)
    for number in range(count):
        lot = random.random()
        if past and lot < _REPEATS:
            yield past[random.randrange(len(past))]
        elif past and lot < _REPEATS + _CONFLICTS:
            old = past[random.randrange(len(past))]
            amounts = {feature: amount + 1 for feature, amount in old.amounts.items()}
            yield Call(old.verb, old.user, amounts, old.key, old.payload)
        else:
            call = _new_call(random.choices(everybody, cum_weights=weights)[0].name, number, random)
            if call.verb != CHECK:
                past.append(call)
            yield call


def _new_call(user: str, number: int, random: Random) -> Call:
    own = random.random() < _OWN_KEYS
    key = f"act-{number}" if own else new_key(now_ms=time.time_ns() // 1_000_000)
    lot = random.random()
    if lot < _RECORDS:
        session = {"conversations": 1, "seconds": random.randint(30, 900), "completed_sessions": 1}
        return Call(RECORD, user, session, key, {"session_id": f"sess_{number}"})
    feature, _, least, most = random.choices(_FEATURES, _WEIGHTS)[0]
    verb = CHECK if lot < _RECORDS + _CHECKS else CONSUME
    return Call(
        verb, user, {feature: random.randint(least, most)}, key, _payload(feature, number, random)
    )


def _payload(feature: str, number: int, random: Random) -> dict[str, Any]:
    if feature == "image_generation":
        return {
            "format": random.choice(("image", "image", "image", "video")),
            "quality": random.choice(("standard", "high", "draft")),
            "metadata": {
                "model_used": "sdxl",
                "prompt_length": random.randint(10, 400),
                "api_provider": "replicate",
            },
        }
    if feature == "feature_recommendations":
        return {
            "event_id": f"evt_{number}",
            "event_type": "feature_used",
            "product_version": random.choice(("2.4.0", "2.4.1", "2.5.0")),
            "session_id": f"sess_{number % 997}",
        }
    if feature == "calendar_follow_event":
        return {"metadata": {"event_id": f"event-{number % _METADATA_FORMS}"}}
    return {}
