"""The load: four features with everything that a record can cost, and calls on them.

Three of four are paid; one has three limits, two have formats or metadata, and one comes with
keys that the caller chose.
"""

from __future__ import annotations

import itertools
import random
from typing import Any

__all__ = ["THREE_LIMITS", "TIERS", "Calls"]

THREE_LIMITS = "tokens"
_MAX = 100_000_000  # nobody is stopped: a denial is cheaper than a record

TIERS: dict[str, Any] = {
    "default_tier": "bench",
    "features": {
        "image_generation": {
            "price": "0.5",
            "format": {"video": "4", "image": "1"},
            "quality": {"high": "2.5", "standard": "1"},
        },
        "tokens": {"price": "0.0015", "format": {"chat": "1.5"}, "quality": {"high": "3"}},
        "anki_exports": {"price": "0.25"},
    },
    "tiers": {
        "bench": {
            "limits": {
                "image_generation": {"max": _MAX, "per": "day"},
                "tokens": [
                    {"max": _MAX, "per": "day"},
                    {"max": _MAX, "per": "week", "mode": "soft"},
                    {"max": _MAX, "per": "month"},
                ],
                "anki_exports": {"max": _MAX, "per": "cycle"},
                "conversations": {"max": _MAX, "per": "month"},
            },
        }
    },
}


class Calls:
    """An endless source of calls, the same in every run but for the keys that the client makes."""

    def __init__(self, users: list[str]) -> None:
        self._users = users
        self._random = random.Random(2002)
        self._numbers = itertools.count()

    def take(self, count: int, *, feature: str | None = None) -> list[dict[str, Any]]:
        """The next *count* calls, arguments of `consume`; of one *feature*, or of all in turn."""
        return [self._call(next(self._numbers), feature) for _ in range(count)]

    def of(self, users: list[str]) -> Calls:
        """The same load by some of the users only, with keys of the same sequence."""
        calls = Calls(users)
        calls._numbers = self._numbers
        return calls

    def _call(self, number: int, feature: str | None) -> dict[str, Any]:
        draw = self._random
        user = draw.choice(self._users)
        kind = number % 4 if feature is None else -1
        if kind == 0:
            form, quality = draw.choice(("video", "image")), draw.choice(("high", "standard"))
            return {
                "user_id": user,
                "feature": "image_generation",
                "format": form,
                "quality": quality,
            }
        if kind == 1:
            metadata = {"deck": f"deck-{number % 97}", "cards": number % 50}
            return {"user_id": user, "feature": "anki_exports", "metadata": metadata}
        if kind == 2:
            return {"user_id": user, "feature": "conversations", "key": f"conversation-{number}"}
        return {
            "user_id": user,
            "feature": feature or THREE_LIMITS,
            "amount": draw.randint(1, 4_000),
            "format": "chat",
            "quality": "high",
        }
