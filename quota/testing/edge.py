"""The arguments of `InMemoryQuota`, refused and read as `Quota` does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quota.calls import refuse_amount_beside
from quota.errors import InvalidValueError
from quota.values import parse_key, usage_record

if TYPE_CHECKING:
    from quota.values import UsageRecord

__all__ = ["parse_refund_id", "usage_records"]

_FEATURES_MAX = 100  # in one record, as the client has it


def usage_records(
    user_id: object, feature: object, amount: object, *, now_ms: int, payload: dict[str, Any]
) -> list[UsageRecord]:
    """The lines of one record, sorted, so that one payload is one however it is spelled."""
    if not isinstance(feature, dict):
        return [usage_record(user_id, feature, amount, now_ms=now_ms, **payload)]
    refuse_amount_beside(amount)
    if not 1 <= len(feature) <= _FEATURES_MAX:
        expected = f"1 to {_FEATURES_MAX} features and their amounts"
        raise InvalidValueError("features", feature, expected)
    records: list[UsageRecord] = []
    for name, units in sorted(feature.items(), key=str):
        if records:
            payload = {**payload, "key": records[0].key}
        records.append(usage_record(user_id, name, units, now_ms=now_ms, **payload))
    return records


def parse_refund_id(found: object) -> str:
    """The name under which a refund is asked for."""
    try:
        return parse_key(found)
    except InvalidValueError as error:
        raise InvalidValueError("refund_id", found, error.expected) from None
