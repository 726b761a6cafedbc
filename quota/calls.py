"""Turns the arguments of a verb into the usage records that it is about."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from quota.errors import InvalidValueError
from quota.values import UsageRecord, instant_ms, parse_instant, usage_record

if TYPE_CHECKING:
    from datetime import datetime

__all__ = ["given_ms", "one_record", "records_of", "refuse_amount_beside", "wall_ms"]

_FEATURES_MAX = 100  # in one record: they travel and are applied together


def wall_ms() -> int:
    """This machine's clock, for what the server's does not decide."""
    return time.time_ns() // 1_000_000


def given_ms(now: datetime | None) -> int:
    """*now* in milliseconds; 0 stands for the server's clock."""
    return 0 if now is None else instant_ms(parse_instant(now, field="now"))


def one_record(
    user_id: object,
    feature: object,
    amount: object,
    *,
    now: datetime | None,
    payload: dict[str, Any],
) -> tuple[int, UsageRecord]:
    """*now* in milliseconds, and the record. Raises InvalidValueError."""
    now_ms = given_ms(now)
    return now_ms, usage_record(user_id, feature, amount, now_ms=now_ms or wall_ms(), **payload)


def refuse_amount_beside(amount: object) -> None:
    """Refuse an amount beside a mapping of features, which would be lost; 1 is what is there unasked.

    Raises:
        InvalidValueError
    """
    if type(amount) is not int or amount != 1:
        raise InvalidValueError(
            "amount", amount, "no amount beside several features: each has its own"
        )


def records_of(
    user_id: object,
    feature: object,
    amount: object,
    *,
    now: datetime | None,
    payload: dict[str, Any],
) -> tuple[int, list[UsageRecord]]:
    """As `one_record`, of one feature or of several in a mapping to their amounts, which share the key."""
    if not isinstance(feature, dict):
        now_ms, record = one_record(user_id, feature, amount, now=now, payload=payload)
        return now_ms, [record]
    refuse_amount_beside(amount)
    if not 1 <= len(feature) <= _FEATURES_MAX:
        raise InvalidValueError(
            "features", feature, f"1 to {_FEATURES_MAX} features and their amounts"
        )
    records: list[UsageRecord] = []
    now_ms = 0
    for name, units in sorted(feature.items(), key=str):  # one payload, however it is spelled
        if records:
            payload = {**payload, "key": records[0].key}
        now_ms, record = one_record(user_id, name, units, now=now, payload=payload)
        records.append(record)
    return now_ms, records
