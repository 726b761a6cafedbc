"""Compares what a step answered with what was expected of it: by value, and only what was named."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any, NamedTuple

from cli.replay.fields import NOTHING
from quota.errors import InvalidValueError
from quota.values import parse_instant

__all__ = ["Difference", "differences", "shown"]

_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?")


class Difference(NamedTuple):
    """A field that has another value than the one expected; `NOTHING` where there is none."""

    field: str
    expected: Any
    got: Any


def differences(expected: object, got: object, *, field: str = "") -> Iterator[Difference]:
    """Every field of *expected* that *got* differs in.

    Objects are compared as subsets, lists in full, decimals and instants by value.
    """
    if isinstance(expected, Mapping) and isinstance(got, Mapping):
        for name, value in expected.items():
            yield from differences(value, got.get(name, NOTHING), field=_joined(field, name))
    elif isinstance(expected, list) and isinstance(got, list) and len(expected) == len(got):
        for place, (one, other) in enumerate(zip(expected, got, strict=True)):
            yield from differences(one, other, field=f"{field}[{place}]")
    elif not _equal(expected, got):
        yield Difference(field, expected, got)


def shown(value: object) -> str:
    """*value* as a message says it: as JSON, texts without their quotes."""
    if value is NOTHING or isinstance(value, str):
        return str(value)
    return json.dumps(value, ensure_ascii=False, default=str)


def _joined(field: str, name: str) -> str:
    return f"{field}.{name}" if field else name


def _equal(expected: object, got: object) -> bool:
    if isinstance(expected, bool) or isinstance(got, bool):
        return expected is got  # true is not 1
    one, other = _number(expected), _number(got)
    if one is not None and other is not None:
        return one == other
    if isinstance(expected, str) and isinstance(got, str) and expected != got:
        return _same_instant(expected, got)
    return expected == got


def _number(value: object) -> Decimal | None:
    if isinstance(value, int | Decimal):
        return Decimal(value)
    if isinstance(value, float):
        return Decimal(repr(value))  # the number that the file says, not the nearest double
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        return Decimal(value)
    return None


def _same_instant(one: str, other: str) -> bool:
    try:
        return parse_instant(one, field="") == parse_instant(other, field="")
    except InvalidValueError:
        return False
