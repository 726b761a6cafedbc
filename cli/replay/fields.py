"""What each verb of a scenario takes: its fields, which of them it must have, their checks.

The checks are those of the edge that the verb drives, so a file and a caller are held to one rule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from quota.burndown import KINDS
from quota.errors import InvalidValueError
from quota.values import (
    AMOUNT_MAX,
    parse_amount,
    parse_credits,
    parse_feature,
    parse_given,
    parse_instant,
    parse_key,
    parse_metadata,
)

__all__ = ["NOTHING", "READS", "VERBS", "Check", "Verb", "check_together"]

Check = Callable[[object], object]

PARALLEL_MAX = 10_000  # calls at once; each is a task and a future of one event loop
TTL_SECONDS_MAX = 86_400  # a hold of more than a day is a forgotten one
PRIORITY_MAX = 32_767
FEATURES_MAX = 100  # of one record: they travel and are applied together
GRANT_EVERY = ("day", "week", "month")

# Everything admitted so far is applied before these.
READS = frozenset({"balance", "usage", "alerts", "lifetime", "flush_redis"})


class _Nothing:
    """What is found where an entry is missing; null would be an entry."""

    def __repr__(self) -> str:
        return "nothing"


NOTHING = _Nothing()


@dataclass(frozen=True, slots=True)
class Verb:
    """The fields of one verb, those it can not do without, and whether it is about a user."""

    fields: Mapping[str, Check]
    required: frozenset[str] = frozenset()
    of_user: bool = True


def _integer(found: object, *, least: int, most: int) -> int:
    if type(found) is int and least <= found <= most:
        return found
    raise InvalidValueError("", found, f"an integer from {least} to {most}")


def _one_of(found: object, *, words: tuple[str, ...]) -> str:
    if isinstance(found, str) and found in words:
        return found
    raise InvalidValueError("", found, f"one of {', '.join(words)}")


def _flag(found: object) -> bool:
    if isinstance(found, bool):
        return found
    raise InvalidValueError("", found, "true or false")


def _amounts(found: object) -> object:
    if not isinstance(found, dict) or not 1 <= len(found) <= FEATURES_MAX:
        expected = f"a table of 1 to {FEATURES_MAX} features and their amounts"
        raise InvalidValueError("", found, expected)
    for feature, amount in found.items():
        try:
            parse_feature(feature)
            parse_amount(amount)
        except InvalidValueError as error:
            raise InvalidValueError(f".{feature}", error.found, error.expected) from None
    return found


def _credits(found: object) -> int:
    return parse_credits(found)


_instant = partial(parse_instant, field="")
_call: dict[str, Check] = {
    "feature": parse_feature,
    "amount": parse_amount,
    "key": parse_key,
    "format": parse_key,  # a text of the same bounds
    "quality": parse_key,
    "occurred_at": _instant,
    "metadata": parse_metadata,
}
_feature = frozenset({"feature"})
_hold = frozenset({"hold"})

VERBS: Mapping[str, Verb] = {
    "consume": Verb({**_call, "parallel": partial(_integer, least=1, most=PARALLEL_MAX)}, _feature),
    "check": Verb(_call, _feature),
    "record": Verb(
        {
            "feature": parse_feature,
            "amount": parse_amount,
            "features": _amounts,
            "key": parse_key,
            "occurred_at": _instant,
        }
    ),
    "reserve": Verb(
        {
            "hold": parse_key,
            "feature": parse_feature,
            "amount": parse_amount,
            "ttl": partial(_integer, least=1, most=TTL_SECONDS_MAX),
        },
        _hold | _feature,
    ),
    "commit": Verb(
        {"hold": parse_key, "amount": partial(_integer, least=0, most=AMOUNT_MAX)}, _hold
    ),
    "release": Verb({"hold": parse_key}, _hold),
    "refund": Verb({"key": parse_key, "amount": parse_amount}, frozenset({"key"})),
    "grant": Verb(
        {
            "id": parse_key,
            "amount": parse_given,
            "priority": partial(_integer, least=0, most=PRIORITY_MAX),
            "kind": partial(_one_of, words=KINDS),
            "effective_at": _instant,
            "expires_at": _instant,
            "min_rollover": _credits,
            "max_rollover": _credits,
            "every": partial(_one_of, words=GRANT_EVERY),
        },
        frozenset({"id", "amount"}),
    ),
    "void": Verb({"id": parse_key}, frozenset({"id"})),
    "reset": Verb({"preserve_overage": _flag}),
    "set_tier": Verb({"tier": parse_key}, frozenset({"tier"})),
    "balance": Verb({}),
    "usage": Verb({"feature": parse_feature}, _feature),
    "alerts": Verb({}),
    "lifetime": Verb({}),
    "flush_redis": Verb({}, of_user=False),
}


def check_together(do: str, fields: Mapping[str, Any], *, at: object) -> None:
    """Refuse fields that are each right and do not go together.

    Raises:
        InvalidValueError: *field* is the name of the one to correct.
    """
    if do == "record":
        _check_record(fields)
    elif do == "grant":
        _check_grant(fields, at=at)


def _check_record(fields: Mapping[str, Any]) -> None:
    if "features" not in fields:
        if "feature" not in fields:
            raise InvalidValueError("feature", NOTHING, "a feature, or `features` with amounts")
        return
    for name in ("feature", "amount"):
        if name in fields:
            raise InvalidValueError(name, fields[name], f"no `{name}` beside `features`")


def _check_grant(fields: Mapping[str, Any], *, at: object) -> None:
    least, most = (fields.get(name, "0") for name in ("min_rollover", "max_rollover"))
    if parse_credits(least) > parse_credits(most):
        raise InvalidValueError("min_rollover", least, f"at most max_rollover, {most}")
    if "expires_at" in fields:
        effective_at = fields.get("effective_at", at)
        if _instant(fields["expires_at"]) <= _instant(effective_at):
            expected = f"an instant after the grant takes effect, {effective_at}"
            raise InvalidValueError("expires_at", fields["expires_at"], expected)
