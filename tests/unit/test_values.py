from __future__ import annotations

import json
from collections import OrderedDict
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal, localcontext
from enum import StrEnum
from fractions import Fraction
from typing import Any
from uuid import UUID, uuid5

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quota.errors import InvalidValueError
from quota.values import (
    AMOUNT_MAX,
    MICRO,
    MICRO_MAX,
    USER_NAMESPACE,
    UsageRecord,
    User,
    credits_of,
    instant_ms,
    instant_of,
    instant_text,
    new_key,
    parse_amount,
    parse_credits,
    parse_feature,
    parse_instant,
    parse_key,
    parse_label,
    parse_metadata,
    parse_user_id,
    usage_record,
    uuid7_time_ms,
)

NOW_MS = 1_750_000_000_123
UUID_TEXT = "0190163d-8694-739b-aea5-966c26f8ad91"

NOT_TEXT: list[Any] = [
    7,
    1.5,
    True,
    b"bytes",
    ["a"],
    {"a": 1},
    float("nan"),
    "",
    "x" * 201,
    "a\0b",
    "\ud800",
    "ok\udfff",
]


class Feature(StrEnum):
    TOKENS = "tokens"


def nested(levels: int, *, of: type) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value] if of is list else {"a": value}
    return value


# Users


@pytest.mark.parametrize("value", [UUID(UUID_TEXT), UUID_TEXT, UUID_TEXT.upper()])
def test_a_uuid_is_the_user_itself(value: object):
    user = parse_user_id(value)

    assert user == User(UUID(UUID_TEXT), None)
    assert user.text == UUID_TEXT


@pytest.mark.parametrize(
    "value",
    ["user-1", "x" * 200, "ünï©ode 🦊", " ", UUID_TEXT.replace("-", ""), f"{{{UUID_TEXT}}}"],
)
def test_any_other_string_is_mapped_to_a_uuid_and_kept(value: str):
    user = parse_user_id(value)

    assert user == User(uuid5(USER_NAMESPACE, value), value)
    assert user.text == value


def test_the_namespace_of_users_never_changes():
    assert parse_user_id("user-1").id == UUID("3dcc2989-82f3-5eec-ae22-10a8dc4d56c6")


@pytest.mark.parametrize(
    "value", [*NOT_TEXT, None, "a\nb", "tab\t", "\x7f", "\x85", UUID_TEXT + "\n", "x" * 10_000_000]
)
def test_a_bad_user_id_is_refused_by_name(value: object):
    with pytest.raises(InvalidValueError, match=r"^user_id: ") as caught:
        parse_user_id(value)

    assert caught.value.field == "user_id"


# Features, amounts, keys, labels


@pytest.mark.parametrize("value", ["a", "image_generation", "api.v1:read-2", "x" * 100])
def test_a_feature_is_a_short_lower_case_name(value: str):
    assert parse_feature(value) == value


def test_a_string_enum_is_taken_as_the_plain_string():
    assert type(parse_feature(Feature.TOKENS)) is str
    assert parse_feature(Feature.TOKENS) == "tokens"
    assert type(parse_key(Feature.TOKENS)) is str
    assert parse_user_id(Feature.TOKENS) == parse_user_id("tokens")


@pytest.mark.parametrize(
    "value",
    [
        *NOT_TEXT,
        None,
        "x" * 101,
        "Upper",
        "1digit",
        "_a",
        "a b",
        "a\n",
        "a/b",
        "*",
        "é",
        "a\uff11",
        "\uff41",
        "a\u0131",
    ],
)
def test_a_bad_feature_is_refused_by_name(value: object):
    with pytest.raises(InvalidValueError, match=r"^feature: "):
        parse_feature(value)


@pytest.mark.parametrize("value", [1, 2, AMOUNT_MAX])
def test_an_amount_is_a_positive_integer_that_a_double_holds(value: int):
    assert parse_amount(value) == value


@pytest.mark.parametrize(
    "value",
    [
        0,
        -1,
        -0.0,
        2**53,
        10**400,
        10**5000,
        1.0,
        1.5,
        float("nan"),
        float("inf"),
        True,
        False,
        None,
        "1",
        "1e400",
        "1_000",
        "\uff11",
        Decimal(1),
        [1],
        {},
    ],
    ids=lambda value: str(type(value).__name__),
)
def test_a_bad_amount_is_refused_by_name(value: object):
    with pytest.raises(InvalidValueError, match=r"^amount: expected an integer from 1 to 9007199"):
        parse_amount(value)


@pytest.mark.parametrize("value", ["k", "x" * 200, "🦊" * 200, "line\nbreak"])
def test_a_key_is_a_string_of_1_to_200_characters(value: str):
    assert parse_key(value) == value


@pytest.mark.parametrize("value", [*NOT_TEXT, None])
def test_a_bad_key_is_refused_by_name(value: object):
    with pytest.raises(InvalidValueError, match=r"^key: "):
        parse_key(value)


def test_a_label_may_be_absent():
    assert parse_label(None, field="session_id") is None
    assert parse_label("s", field="session_id") == "s"


@pytest.mark.parametrize("value", NOT_TEXT)
def test_a_bad_label_is_refused_under_its_own_name(value: object):
    with pytest.raises(InvalidValueError, match=r"^session_id: "):
        parse_label(value, field="session_id")


# Metadata


def test_equal_metadata_are_equal_text():
    text = parse_metadata({"b": [1, 2.5, None, True], "a": {"é": "🦊"}})

    assert text == '{"a":{"é":"🦊"},"b":[1,2.5,null,true]}'
    assert parse_metadata(OrderedDict(a={"é": "🦊"}, b=[1, 2.5, None, True])) == text
    assert parse_metadata(None) is None
    assert parse_metadata({}) == "{}"


@pytest.mark.parametrize(
    "value",
    [
        {"a": "x" * (16 * 1024 - 8)},
        nested(8, of=dict),
        {"a": nested(7, of=list)},
        {"a": 2**63 - 1, "b": -(2**63) + 1},
        {"a": 1e308},
        {"a": "back\\u0000slash"},
    ],
    ids=["16 KiB", "8 objects", "8 levels", "64 bits", "large", "a backslash is no NUL"],
)
def test_metadata_up_to_the_bounds_are_taken(value: dict[str, Any]):
    text = parse_metadata(value)

    assert text is not None
    assert json.loads(text) == value


def cyclic() -> dict[str, Any]:
    value: dict[str, Any] = {}
    value["self"] = value
    return value


def bomb() -> dict[str, Any]:
    """Eight levels of one list each, reached by a thousand paths from the level above."""
    value: Any = [1] * 1000
    for _ in range(5):
        value = [value] * 1000
    return {"a": value}


@pytest.mark.parametrize(
    "value",
    [
        "text",
        [],
        [{}],
        1,
        True,
        {"a": "x" * (16 * 1024 - 7)},
        {"a": "é" * (8 * 1024)},
        {"x" * (16 * 1024): 1},
        {"a": list(range(16 * 1024))},
        {str(number): number for number in range(20_000)},
        nested(9, of=dict),
        {"a": nested(8, of=list)},
        {"a": nested(100_000, of=list)},
        nested(100_000, of=dict),
        cyclic(),
        bomb(),
        {"a": float("nan")},
        {"a": float("inf")},
        {"a": [-float("inf")]},
        {"a": 2**63},
        {"a": 10**5000},
        {"a": -(2**63)},
        {1: "a"},
        {None: "a"},
        {("a",): 1},
        {"a": {2: 3}},
        {"a": (1, 2)},
        {"a": {1, 2}},
        {"a": b"bytes"},
        {"a": Decimal(1)},
        {"a": datetime(2024, 1, 1, tzinfo=UTC)},
        {"a": object()},
        {"a": "nul\0"},
        {"nul\0": 1},
        {"a": "\ud800"},
        {"\udfff": 1},
    ],
    ids=lambda value: type(value).__name__,
)
def test_bad_metadata_are_refused_by_name(value: object):
    with pytest.raises(InvalidValueError) as caught:
        parse_metadata(value)

    assert caught.value.field == "metadata"
    assert len(str(caught.value)) < 300


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_characters="\0", codec="utf-8")), inner)
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.text(st.characters(codec="utf-8")), json_values, max_size=4))
def test_metadata_are_either_refused_or_read_back_as_they_were(value: dict[str, Any]):
    try:
        text = parse_metadata(value)
    except InvalidValueError:
        return

    assert text is not None
    assert json.loads(text) == value
    assert parse_metadata(json.loads(text)) == text


# Credits


@pytest.mark.parametrize(
    ("value", "micro"),
    [
        ("0", 0),
        ("12.5", 12_500_000),
        ("0.000001", 1),
        ("9007199254.740991", MICRO_MAX),
        (20, 20_000_000),
        (0, 0),
        (Decimal("2.50"), 2_500_000),
        (Decimal("2E+1"), 20_000_000),
        (Decimal("2.500000000000"), 2_500_000),
        (Decimal("-0"), 0),
        (Decimal("0E-9999"), 0),
    ],
)
def test_credits_become_micro_credits_exactly(value: object, micro: int):
    assert parse_credits(value) == micro


@pytest.mark.parametrize(
    "value",
    [
        "-1",
        "-0",
        "+1",
        "",
        " 1",
        "1 ",
        "1\n",
        ".5",
        "5.",
        "1.",
        "01",
        "1,5",
        "1_000",
        "1e3",
        "1E3",
        "1e400",
        "1e-400",
        "NaN",
        "nan",
        "sNaN",
        "Infinity",
        "inf",
        "\uff11\uff12",
        "1.\u0665",
        "0x10",
        "1\0",
        "\ud800",
        "0.0000001",
        "1.0000000",
        "9007199254.740992",
        "99999999999",
        "1" * 1_000_000,
        1.5,
        1.0,
        float("nan"),
        float("inf"),
        True,
        False,
        None,
        b"1",
        [1],
        -1,
        2**53,
        10**5000,
        Decimal("NaN"),
        Decimal("sNaN"),
        Decimal("Infinity"),
        Decimal("-0.000001"),
        Decimal("1E+400"),
        Decimal("1E+999999"),
        Decimal("1E+999999999999999999"),  # as an integer it would fill the memory
        Decimal("1E-999999"),
        Decimal("0.0000001"),
        Decimal("1.0000001"),
        Decimal("9007199254.740992"),
    ],
    ids=lambda value: str(value)[:20] if isinstance(value, str) else type(value).__name__,
)
def test_bad_credits_are_refused_by_name(value: object):
    with pytest.raises(InvalidValueError, match=r"^max_rollover: expected a decimal from 0 to"):
        parse_credits(value, field="max_rollover")


def test_credits_are_named_credits_when_nothing_else_is_said():
    with pytest.raises(InvalidValueError, match=r"^credits: "):
        parse_credits("x")


@pytest.mark.parametrize(
    ("micro", "text"),
    [
        (0, "0"),
        (1, "0.000001"),
        (2_500_000, "2.5"),
        (20_000_000, "20"),
        (100_000_000, "100"),
        (-1_500_000, "-1.5"),
        (MICRO_MAX, "9007199254.740991"),
    ],
)
def test_credits_are_shown_plainly_without_trailing_zeros(micro: int, text: str):
    assert str(credits_of(micro)) == text


@given(st.integers(0, MICRO_MAX))
def test_credits_survive_the_way_out_and_in_whatever_the_decimal_context(micro: int):
    with localcontext(prec=3):
        shown = credits_of(micro)

        assert Fraction(shown) == Fraction(micro, MICRO)
        assert parse_credits(shown) == micro
        assert parse_credits(str(shown)) == micro


@given(st.text(max_size=20) | st.decimals() | st.integers() | st.floats() | st.booleans())
def test_credits_are_either_refused_or_exactly_the_value(value: str | Decimal | float):
    try:
        micro = parse_credits(value)
    except InvalidValueError:
        return

    assert Fraction(micro, MICRO) == Fraction(value)
    assert 0 <= micro <= MICRO_MAX


# Instants


@pytest.mark.parametrize(
    "value",
    [
        "2024-01-31T10:00:00Z",
        "2024-01-31t10:00z",
        "2024-01-31 10:00:00+00:00",
        "2024-01-31T15:30:00+0530",
        "2024-01-31T05:00:00.000000-05:00",
        datetime(2024, 1, 31, 10, tzinfo=UTC),
        datetime(2024, 1, 31, 12, tzinfo=timezone(timedelta(hours=2))),
    ],
)
def test_an_instant_with_an_offset_is_read_as_utc(value: object):
    instant = parse_instant(value, field="at")

    assert instant == datetime(2024, 1, 31, 10, tzinfo=UTC)
    assert instant.tzinfo is UTC


@pytest.mark.parametrize(
    "value",
    [
        "2024-01-31T10:00:00",
        datetime(2024, 1, 31, 10),  # noqa: DTZ001 - naive is the point
        "2024-01-31",
        "20240131T100000Z",
        "2024-W05-3T10:00:00Z",
        "2024-02-30T10:00:00Z",
        "2024-01-31T25:00:00Z",
        "2024-01-31T10:00:60Z",
        "2024-01-31T10:00:00+25:00",
        "0001-01-01T00:00:00+14:00",
        "9999-12-31T23:59:59-14:00",
        datetime.max.replace(tzinfo=timezone(timedelta(hours=-14))),
        "\uff12024-01-31T10:00:00Z",
        "2024-01-31T10:00:00Z\n",
        "2024-01-31\ud80010:00:00Z",
        "2024-01-31T10:00:00Z\0",
        "now",
        "",
        1_700_000_000,
        1.7e9,
        True,
        None,
    ],
)
def test_a_bad_instant_is_refused_by_name(value: object):
    with pytest.raises(InvalidValueError, match=r"^expires_at: "):
        parse_instant(value, field="expires_at")


@given(st.integers(-(10**13), 10**14))
def test_an_instant_is_the_same_in_milliseconds_and_as_text(ms: int):
    assert instant_ms(instant_of(ms)) == ms
    assert instant_ms(parse_instant(instant_text(ms), field="at")) == ms


def test_an_instant_is_written_in_utc_and_shortly():
    assert instant_text(1_706_695_200_000) == "2024-01-31T10:00:00Z"
    assert instant_text(1_706_695_200_007) == "2024-01-31T10:00:00.007Z"


def test_milliseconds_are_rounded_down_before_1970_too():
    assert instant_ms(datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)) == -1


# Keys


@given(st.integers(0, 2**48 - 1))
def test_a_new_key_is_a_uuid_of_version_7_that_carries_its_time(now_ms: int):
    key = new_key(now_ms=now_ms)

    parsed = UUID(key)
    assert str(parsed) == key
    assert parsed.version == 7
    assert parsed.int >> 80 == now_ms
    assert uuid7_time_ms(key) == now_ms


def test_new_keys_of_one_millisecond_differ():
    assert len({new_key(now_ms=NOW_MS) for _ in range(10_000)}) == 10_000


@pytest.mark.parametrize(
    "text",
    [
        "job-42",
        "",
        str(uuid5(USER_NAMESPACE, "x")),
        UUID_TEXT.upper(),
        UUID_TEXT.replace("-", ""),
        UUID_TEXT + "\n",
        " " + UUID_TEXT,
        UUID_TEXT.replace("-739b", "-439b"),
        UUID_TEXT.replace("-aea5", "-cea5"),
        UUID_TEXT.replace("0", "\uff10"),
    ],
)
def test_a_key_that_is_no_canonical_uuid_of_version_7_has_no_time(text: str):
    assert uuid7_time_ms(text) is None


# Usage records


def test_a_record_takes_an_amount_of_one_and_a_key_of_its_own():
    record = usage_record("user-1", "tokens", now_ms=NOW_MS)

    assert record == UsageRecord(parse_user_id("user-1"), "tokens", 1, record.key)
    assert uuid7_time_ms(record.key) == NOW_MS


def test_a_record_keeps_every_field():
    record = usage_record(
        "user-1",
        "image",
        3,
        key="job-42",
        now_ms=NOW_MS,
        format="video",
        quality="high",
        metadata={"b": 1, "a": 2},
        occurred_at=instant_text(NOW_MS),
        event_id="e",
        event_type="t",
        product_version="1.2",
        session_id="s",
    )

    assert record == UsageRecord(
        user=parse_user_id("user-1"),
        feature="image",
        amount=3,
        key="job-42",
        format="video",
        quality="high",
        metadata='{"a":2,"b":1}',
        occurred_at_ms=NOW_MS,
        event_id="e",
        event_type="t",
        product_version="1.2",
        session_id="s",
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("user_id", ""),
        ("user_id", None),
        ("feature", "Bad"),
        ("amount", True),
        ("amount", 2**53),
        ("amount", None),
        ("key", ""),
        ("key", 5),
        ("format", ""),
        ("quality", "\0"),
        ("metadata", []),
        ("metadata", False),
        ("occurred_at", "yesterday"),
        ("occurred_at", instant_text(NOW_MS + 5 * 60_000 + 1)),
        ("occurred_at", "1969-12-31T23:59:59Z"),
        ("event_id", 1),
        ("event_type", "\ud800"),
        ("product_version", 1.5),
        ("session_id", "x" * 201),
    ],
)
def test_a_record_with_a_bad_field_is_refused_by_name(field: str, value: object):
    fields: dict[str, Any] = {"user_id": "u", "feature": "f", "now_ms": NOW_MS, field: value}

    with pytest.raises(InvalidValueError) as caught:
        usage_record(**fields)

    assert caught.value.field == field


@pytest.mark.parametrize("ahead_ms", [-(10**11), 0, 5 * 60_000])
def test_an_act_may_lie_in_the_past_or_five_minutes_ahead(ahead_ms: int):
    record = usage_record("u", "f", now_ms=NOW_MS, occurred_at=instant_text(NOW_MS + ahead_ms))

    assert record.occurred_at_ms == NOW_MS + ahead_ms
