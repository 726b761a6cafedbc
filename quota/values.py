"""The values that cross the edge, each with the one function that lets it in.

Everything behind the edge may assume what is checked here, so the scripts, the log
and the tables never meet a wrong type, a lone surrogate or a number that Lua cannot hold.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from secrets import token_bytes
from uuid import UUID, uuid5

from quota.errors import InvalidValueError

__all__ = [
    "AHEAD_MS_MAX",
    "AMOUNT_MAX",
    "GIVEN",
    "METADATA_BYTES_MAX",
    "MICRO",
    "MICRO_MAX",
    "USER_NAMESPACE",
    "UsageRecord",
    "User",
    "credits_of",
    "exact_decimal",
    "instant_ms",
    "instant_of",
    "instant_text",
    "new_key",
    "parse_amount",
    "parse_credits",
    "parse_feature",
    "parse_given",
    "parse_instant",
    "parse_key",
    "parse_label",
    "parse_metadata",
    "parse_units",
    "parse_user_id",
    "usage_record",
    "uuid7_time_ms",
]

AMOUNT_MAX = 2**53 - 1  # Lua numbers are doubles: the last integer before gaps appear
MICRO_MAX = AMOUNT_MAX  # micro-credits meet the same doubles
MICRO = 1_000_000  # micro-credits in a credit: 6 places
AHEAD_MS_MAX = 5 * 60 * 1000  # a clock may run ahead by so much; more is a wrong date

# A fixed literal: with another one every user known by a string would become a stranger.
USER_NAMESPACE = UUID("6f1d0c5e-3b0a-5a7c-9d64-2f1f6a3f7c11")

_TEXT_CHARS_MAX = 200
_CREDITS_WHOLE_MAX = 10  # digits before the point of MICRO_MAX / MICRO
_CREDITS_PLACES_MAX = 6
METADATA_BYTES_MAX = 16 * 1024
_METADATA_DEPTH_MAX = 8
_METADATA_INT_MAX = 2**63 - 1
_USERS_CACHED_MAX = 16_384  # about 6 MB; a busy process serves this many users at a time
_FEATURES_CACHED_MAX = 4_096
_KEY_TIME_MS_MAX = 2**48 - 1  # the bits that RFC 9562 gives to the time of a UUIDv7

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)

# `fullmatch` throughout: `$` would let a trailing newline in. `[0-9]`, because `\d` takes other
# scripts' digits.
_FEATURE = re.compile(r"[a-z][a-z0-9_.:-]{0,99}")
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE | re.ASCII)
_UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_CONTROL_OR_SURROGATE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_DECIMAL = re.compile(r"(0|[1-9][0-9]*)(?:\.([0-9]+))?")
_INSTANT = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]{1,9})?)?"
    r"(?:[Zz]|[+-][0-9]{2}:?[0-9]{2})"
)
_VARIANT = dict(zip("0123456789abcdef", "89ab" * 4, strict=True))  # RFC 9562: bits 10

# Built once: `json.dumps` with options makes an encoder for every call.
_CANONICAL = json.JSONEncoder(
    ensure_ascii=False,
    allow_nan=False,
    check_circular=False,  # the depth bound has already refused a cycle
    sort_keys=True,
    separators=(",", ":"),
)


@dataclass(frozen=True, slots=True)
class User:
    """Whose usage it is: the UUID that the store knows, and the string it was made from."""

    id: UUID
    external_id: str | None

    @property
    def text(self) -> str:
        """The identifier as the caller wrote it."""
        return str(self.id) if self.external_id is None else self.external_id


@dataclass(frozen=True, slots=True)
class UsageRecord:
    """One metered act, already validated; made by `usage_record` only."""

    user: User
    feature: str
    amount: int
    key: str
    format: str | None = None
    quality: str | None = None
    metadata: str | None = None  # canonical JSON text
    occurred_at_ms: int | None = None
    event_id: str | None = None
    event_type: str | None = None
    product_version: str | None = None
    session_id: str | None = None


def parse_user_id(value: object) -> User:
    """A UUID, or any string of 1 to 200 characters, which is mapped to a UUIDv5."""
    if type(value) is str:
        return _user_of(value)
    if isinstance(value, UUID):
        return User(value, None)
    if isinstance(value, str):
        return _user_of(str.__str__(value))  # a plain copy: a subclass may hash as it likes
    raise InvalidValueError("user_id", value, "a UUID or a string of 1 to 200 characters")


@lru_cache(maxsize=_USERS_CACHED_MAX)
def _user_of(text: str) -> User:
    if _UUID.fullmatch(text):
        return User(UUID(text), None)
    if not 0 < len(text) <= _TEXT_CHARS_MAX:
        raise InvalidValueError("user_id", text, "a UUID or a string of 1 to 200 characters")
    if _CONTROL_OR_SURROGATE.search(text):
        raise InvalidValueError("user_id", text, "no control characters and no lone surrogates")
    return User(uuid5(USER_NAMESPACE, text), text)


def parse_feature(value: object) -> str:
    """A feature's name."""
    if type(value) is str:
        return _feature_of(value)
    if isinstance(value, str):
        return _feature_of(str.__str__(value))
    raise InvalidValueError("feature", value, "a name such as 'image_generation'")


@lru_cache(maxsize=_FEATURES_CACHED_MAX)
def _feature_of(text: str) -> str:
    if not _FEATURE.fullmatch(text):
        raise InvalidValueError(
            "feature", text, "1 to 100 of a-z, 0-9, '_', '.', ':', '-', beginning with a letter"
        )
    return text


def parse_amount(value: object) -> int:
    """Units asked for: a true integer, for `True` and `1.0` are more likely mistakes."""
    if type(value) is int and 0 < value <= AMOUNT_MAX:
        return value
    raise InvalidValueError("amount", value, f"an integer from 1 to {AMOUNT_MAX}")


def parse_units(value: object) -> int:
    """Units that a hold ends with; 0 is none."""
    if type(value) is int and 0 <= value <= AMOUNT_MAX:
        return value
    raise InvalidValueError("amount", value, f"an integer from 0 to {AMOUNT_MAX}")


def parse_key(value: object) -> str:
    """An idempotency key: 1 to 200 characters."""
    return _text_of(value, field="key")


def parse_label(value: object, *, field: str) -> str | None:
    """An optional text of 1 to 200 characters, such as a format or a session id."""
    return None if value is None else _text_of(value, field=field)


def _text_of(value: object, *, field: str) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= _TEXT_CHARS_MAX:
        raise InvalidValueError(field, value, "a string of 1 to 200 characters")
    if "\0" in value:
        raise InvalidValueError(field, value, "no NUL character")  # PostgreSQL stores none
    if not value.isascii() and not _encodes(value):
        raise InvalidValueError(field, value, "no lone surrogates")
    return str.__str__(value)


def _encodes(text: str) -> bool:
    """Whether UTF-8 can carry *text*; only a lone surrogate prevents it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def parse_metadata(value: object) -> str | None:
    """A JSON object as canonical text, so that equal metadata are equal strings.

    At most 16 KiB of UTF-8 and 8 levels; integers fit 64 bits, floats are finite.
    """
    if value is None:
        return None
    if not isinstance(value, dict):
        raise InvalidValueError("metadata", value, "a JSON object or nothing")
    _check_metadata(value)
    text = _CANONICAL.encode(value)
    if len(text.encode()) > METADATA_BYTES_MAX:
        raise _oversize(value)
    return text


def _check_metadata(root: object) -> None:
    """Walk *root* without recursion; `chars` is a lower bound of the size of its text.

    The bound ends the walk early where one list is reached by very many paths.
    """
    chars = 0
    pending: list[tuple[object, int]] = [(root, 1)]
    while pending:
        node, depth = pending.pop()
        if not isinstance(node, dict | list | str):
            _check_scalar(node)
            continue
        chars += len(node)
        if chars > METADATA_BYTES_MAX:
            raise _oversize(root)
        if isinstance(node, str):
            _check_metadata_text(node)
            continue
        if depth > _METADATA_DEPTH_MAX:
            raise InvalidValueError("metadata", root, "at most 8 levels")
        if isinstance(node, dict):
            pending.extend((_name_of(name), depth) for name in node)
        members = node.values() if isinstance(node, dict) else node
        pending.extend((member, depth + 1) for member in members)


def _name_of(name: object) -> str:
    if not isinstance(name, str):
        raise InvalidValueError("metadata", name, "strings as the names of members")
    return name


def _check_scalar(node: object) -> None:
    if node is None or isinstance(node, bool):
        return
    if isinstance(node, int):
        if abs(node) > _METADATA_INT_MAX:
            raise InvalidValueError("metadata", node, "integers of at most 64 bits")
    elif isinstance(node, float):
        if not math.isfinite(node):
            raise InvalidValueError("metadata", node, "finite numbers")
    else:
        raise InvalidValueError("metadata", node, "JSON values only")


def _check_metadata_text(text: str) -> None:
    if "\0" in text:
        raise InvalidValueError("metadata", text, "no NUL character")
    if not text.isascii() and not _encodes(text):
        raise InvalidValueError("metadata", text, "no lone surrogates")


def _oversize(found: object) -> InvalidValueError:
    return InvalidValueError("metadata", found, f"at most {METADATA_BYTES_MAX} bytes as JSON")


def parse_credits(value: object, *, field: str = "credits") -> int:
    """Micro-credits of a decimal string, an integer or a `Decimal`; zero is allowed."""
    exact = exact_decimal(value, whole_max=_CREDITS_WHOLE_MAX, places_max=_CREDITS_PLACES_MAX)
    if exact is not None:
        numerator, denominator = exact.as_integer_ratio()  # arithmetic would obey the context
        micro = numerator * MICRO // denominator
        if micro <= MICRO_MAX:
            return micro
    raise InvalidValueError(
        field, value, f"a decimal from 0 to {credits_of(MICRO_MAX)} with at most 6 places"
    )


def parse_given(value: object) -> int:
    """Micro-credits of a grant: more than none."""
    micro = parse_credits(value, field="amount")
    if micro == 0:
        raise InvalidValueError("amount", value, GIVEN)
    return micro


def exact_decimal(value: object, *, whole_max: int, places_max: int) -> Decimal | None:
    """*value* as a non-negative `Decimal` within so many digits, or None if it is not one.

    A string is taken in plain notation only (no sign, exponent, underscore, space or
    leading zero); a `Decimal` counts by its value. A float is never exact.
    """
    if isinstance(value, str):
        return _decimal_of(value, whole_max=whole_max, places_max=places_max)
    if isinstance(value, int) and not isinstance(value, bool):
        return Decimal(value) if 0 <= value < 10**whole_max else None
    if isinstance(value, Decimal) and value.is_finite() and value >= 0:
        if not value:
            return Decimal(0)  # no -0 inside
        return value if _fits(value, whole_max=whole_max, places_max=places_max) else None
    return None


def _decimal_of(text: str, *, whole_max: int, places_max: int) -> Decimal | None:
    if len(text) > whole_max + 1 + places_max:
        return None
    match = _DECIMAL.fullmatch(text)
    if match is None or len(match[1]) > whole_max or len(match[2] or "") > places_max:
        return None
    return Decimal(text)


def _fits(value: Decimal, *, whole_max: int, places_max: int) -> bool:
    """Whether a positive *value* has so few digits; looks at the exponent before it multiplies."""
    _, digits, exponent = value.as_tuple()
    assert isinstance(exponent, int)  # a letter only for NaN and Infinity
    if not -places_max <= value.adjusted() < whole_max:
        return False
    surplus = -exponent - places_max
    return surplus <= 0 or not any(digits[-surplus:])


def credits_of(micro: int) -> Decimal:
    """Credits in plain notation without trailing zeros: 2500000 is 2.5."""
    whole, rest = divmod(abs(micro), MICRO)
    sign = "-" if micro < 0 else ""
    # From text: a division would be rounded to the precision of the caller's context.
    return Decimal(f"{sign}{whole}.{rest:06d}".rstrip("0").rstrip("."))


def parse_instant(value: object, *, field: str) -> datetime:
    """An aware `datetime`, or an ISO 8601 string with its offset, in UTC."""
    try:
        if isinstance(value, str) and _INSTANT.fullmatch(value):
            value = datetime.fromisoformat(value.upper())
        if isinstance(value, datetime) and value.utcoffset() is not None:
            return value.astimezone(UTC)
    except (ValueError, OverflowError):
        pass  # a 30 February, or an instant that UTC moves out of the years 1 to 9999
    raise InvalidValueError(
        field, value, "an instant with its offset, such as '2024-01-31T10:00:00Z'"
    )


GIVEN = f"credits above 0, up to {credits_of(MICRO_MAX)}"


def instant_ms(instant: datetime) -> int:
    """Whole milliseconds from 1970 to an aware *instant*, rounded down."""
    return (instant - _EPOCH) // _MILLISECOND


def instant_of(ms: int) -> datetime:
    """The aware UTC instant so many milliseconds after 1970."""
    return _EPOCH + timedelta(milliseconds=ms)  # exact, where `fromtimestamp` takes a float


def instant_text(ms: int) -> str:
    """RFC 3339 in UTC; milliseconds only where there are any."""
    timespec = "milliseconds" if ms % 1000 else "seconds"
    return instant_of(ms).replace(tzinfo=None).isoformat(timespec=timespec) + "Z"


def new_key(*, now_ms: int) -> str:
    """A UUIDv7 of *now_ms* (RFC 9562).

    Fresh random digits each time: a buffer of them would be shared by the children of
    a fork, whose equal keys would count as repeats of one another.
    """
    assert 0 <= now_ms <= _KEY_TIME_MS_MAX
    digits = (now_ms.to_bytes(6) + token_bytes(10)).hex()
    variant = _VARIANT[digits[16]]
    return f"{digits[:8]}-{digits[8:12]}-7{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"


def uuid7_time_ms(text: str) -> int | None:
    """The time in a key that is a UUIDv7 in canonical (lower case) text, else None."""
    if _UUID7.fullmatch(text) is None:
        return None
    return int(text[:8] + text[9:13], 16)


def usage_record(
    user_id: object,
    feature: object,
    amount: object = 1,
    *,
    key: object | None = None,
    now_ms: int,
    format: object | None = None,
    quality: object | None = None,
    metadata: object | None = None,
    occurred_at: object | None = None,
    event_id: object | None = None,
    event_type: object | None = None,
    product_version: object | None = None,
    session_id: object | None = None,
) -> UsageRecord:
    """Validate one metered act; `InvalidValueError` names the first bad field.

    *now_ms* gives a missing key its time and bounds how far ahead *occurred_at* may be.
    """
    return UsageRecord(
        parse_user_id(user_id),
        parse_feature(feature),
        parse_amount(amount),
        new_key(now_ms=now_ms) if key is None else _text_of(key, field="key"),
        None if format is None else _text_of(format, field="format"),
        None if quality is None else _text_of(quality, field="quality"),
        None if metadata is None else parse_metadata(metadata),
        None if occurred_at is None else _occurred_ms(occurred_at, now_ms=now_ms),
        None if event_id is None else _text_of(event_id, field="event_id"),
        None if event_type is None else _text_of(event_type, field="event_type"),
        None if product_version is None else _text_of(product_version, field="product_version"),
        None if session_id is None else _text_of(session_id, field="session_id"),
    )


def _occurred_ms(value: object, *, now_ms: int) -> int:
    occurred_ms = instant_ms(parse_instant(value, field="occurred_at"))
    if not 0 <= occurred_ms <= now_ms + AHEAD_MS_MAX:
        raise InvalidValueError(
            "occurred_at", value, "an instant from 1970 to five minutes from now"
        )
    return occurred_ms
