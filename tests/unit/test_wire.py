from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from quota.rules import Rules
from quota.values import UsageRecord, instant_of, parse_metadata, usage_record
from quota.wire import (
    CHECK,
    COMMIT,
    COMMIT_ALL,
    CONSUME,
    RECORD,
    RELEASE,
    Ask,
    Ending,
    Reserving,
    arguments,
    decision_of,
    end_mark_of,
    ending_line,
    mark_of,
    settlement_of,
)
from service.usage_log import Entries, Line, decode_entry

NOW_MS = 1_750_000_000_000
PLAIN: dict[str, Any] = {"user_id": "user-1", "feature": "tokens", "amount": 3, "key": "k-1"}
FULL: dict[str, Any] = {
    **PLAIN,
    "format": "video",
    "quality": "high",
    "metadata": {"a": 1},
    "occurred_at": datetime(2025, 1, 1, tzinfo=UTC),
    "event_id": "e-1",
    "event_type": "type",
    "product_version": "1.2",
    "session_id": "s-1",
}
OTHER: dict[str, Any] = {
    "user_id": "user-2",
    "feature": "token",
    "amount": 4,
    "key": "k-2",
    "format": "high",
    "quality": "video",
    "metadata": {"a": "1"},
    "occurred_at": datetime(2025, 1, 1, 0, 0, 1, tzinfo=UTC),
    "event_id": "type",
    "event_type": "e-1",
    "product_version": "1.20",
    "session_id": "S-1",
}
EXOTIC = [
    '"',
    "\\",
    '\\"',
    "\u2028\u2029",
    "ü",
    "😀",
    "\x7f",
    "\n\r\t\b",
    "%s%d",
    "],[",
    "null",
    "'",
]


def ask(verb: str = CONSUME, **fields: Any) -> Ask:
    return Ask(verb, [usage_record(now_ms=NOW_MS, **fields)])


def read_back(asked: Ask) -> list[Line]:
    """The lines as the worker reads them, from an entry as the script writes it."""
    text = "[" + ",".join(asked.lines) + "]"
    costs = b"0," * len(asked.lines)
    fields = {b"v": b"1", b"e": b"1", b"t": b"%d" % NOW_MS, b"c": costs, b"r": text.encode()}
    run = Entries(after="0-0", last="0-0")
    decode_entry(run, "1-0", fields)
    assert run.unreadable == []
    assert [user_id for user_id, *_ in run.lines] == [asked.user_id] * len(asked.lines)
    return [line for _, line, *_ in run.lines]


def fields_of(line: Line) -> dict[str, Any]:
    names = ["format", "quality", "occurred_at_ms", "event_id", "event_type"]
    names += ["product_version", "session_id"]
    return {
        "user": line.user,
        "feature": line.feature,
        "amount": line.amount,
        "key": line.key,
        "metadata": None if bytes(line.metadata) == b"null" else bytes(line.metadata).decode(),
        **{name: getattr(line, name) for name in names},
    }


def fields_asked(asked: Ask, number: int = 0) -> dict[str, Any]:
    record = asked.records[number]
    named = {name: getattr(record, name) for name in record.__slots__ if name != "user"}
    return {"user": record.user.text, **named}


@pytest.mark.parametrize("payload", [PLAIN, FULL])
def test_the_same_payload_has_the_same_fingerprint_and_mark(payload: dict[str, Any]):
    one, other = ask(**payload), ask(**payload)

    assert (one.fingerprint, one.mark) == (other.fingerprint, other.mark)
    assert (len(one.fingerprint), len(one.mark)) == (6, 16)


@pytest.mark.parametrize("name", OTHER)
@pytest.mark.parametrize("payload", [PLAIN, FULL], ids=["plain", "full"])
def test_every_field_of_the_payload_changes_the_fingerprint(payload: dict[str, Any], name: str):
    assert ask(**payload).fingerprint != ask(**payload | {name: OTHER[name]}).fingerprint


@pytest.mark.parametrize("name", [name for name in FULL if name not in PLAIN])
def test_a_field_that_is_left_out_changes_the_fingerprint(name: str):
    without = {field: value for field, value in FULL.items() if field != name}

    assert ask(**FULL).fingerprint != ask(**without).fingerprint


def test_equal_metadata_in_another_order_has_the_same_fingerprint():
    one, other = ({"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"d": 3, "c": 2}, "a": 1})

    assert ask(**PLAIN, metadata=one).fingerprint == ask(**PLAIN, metadata=other).fingerprint


def test_one_instant_written_in_two_zones_has_the_same_fingerprint():
    one, other = "2025-01-01T12:00:00+02:00", datetime(2025, 1, 1, 10, tzinfo=UTC)

    assert ask(**PLAIN, occurred_at=one).fingerprint == ask(**PLAIN, occurred_at=other).fingerprint


def test_the_mark_is_of_user_and_key_alone():
    marks = {ask(**PLAIN | {name: OTHER[name]}).mark for name in ("user_id", "key")}

    assert len(marks | {ask(**PLAIN).mark}) == 3
    assert ask(**FULL | {"feature": "other", "amount": 9}).mark == ask(**PLAIN).mark
    assert ask(RECORD, **PLAIN).mark == ask(CONSUME, **PLAIN).mark
    assert ask(**PLAIN).mark == mark_of(ask(**PLAIN).user_id, "k-1")


def test_a_check_leaves_no_mark():
    assert ask(CHECK, **PLAIN).mark == b""


@given(
    one=st.tuples(st.uuids(), st.text(min_size=1, max_size=5)),
    other=st.tuples(st.uuids(), st.text(min_size=1, max_size=5)),
)
def test_two_keys_have_two_marks(one: tuple[UUID, str], other: tuple[UUID, str]):
    assert (mark_of(*one) == mark_of(*other)) == (one == other)


@pytest.mark.parametrize("payload", [PLAIN, FULL])
def test_a_line_is_read_back_as_it_was_asked(payload: dict[str, Any]):
    asked = ask(**payload)

    assert [fields_of(line) for line in read_back(asked)] == [fields_asked(asked)]


texts = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=200
)
users = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=200)
optional = st.none() | texts
metadata = st.none() | st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=10),
    st.none()
    | st.booleans()
    | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    max_size=4,
)


@given(
    payload=st.fixed_dictionaries(
        {
            "user_id": users | st.uuids(),
            "feature": st.from_regex(r"[a-z][a-z0-9_.:-]{0,99}", fullmatch=True),
            "amount": st.integers(1, 2**53 - 1),
            "key": texts,
        },
        optional={
            "format": optional,
            "quality": optional,
            "metadata": metadata,
            "occurred_at": st.integers(0, NOW_MS).map(instant_of),
            "event_id": optional,
            "event_type": optional,
            "product_version": optional,
            "session_id": optional,
        },
    )
)
@example(payload={**FULL, "key": "".join(EXOTIC), "format": "\\u0041", "metadata": {'"': "\u2028"}})
@example(payload={**PLAIN, "user_id": "\u2028" * 200, "key": "😀" * 200})
@example(payload={**PLAIN, "key": "\x01\x1f\x7f\x80"})
def test_every_text_survives_the_way_into_the_log_and_out(payload: dict[str, Any]):
    asked = ask(**payload)

    [line] = read_back(asked)

    assert fields_of(line) == fields_asked(asked)
    assert fields_of(line)["metadata"] == parse_metadata(payload.get("metadata"))
    assert "\n" not in asked.lines[0]  # a line is one line: the fingerprint joins them


@pytest.mark.parametrize("text", EXOTIC)
def test_an_exotic_text_is_one_line_of_json(text: str):
    asked = ask(**PLAIN | {"key": text, "session_id": text, "metadata": {text: text}})

    assert json.loads(asked.lines[0])[3] == text
    assert json.loads(asked.lines[0])[7] == {text: text}


def test_the_lines_of_a_record_are_numbered_and_share_its_key():
    records = [usage_record("u", feature, 1, key="k", now_ms=NOW_MS) for feature in ("a", "b", "c")]
    asked = Ask(RECORD, records)

    lines = read_back(asked)

    assert [(line.feature, line.key, line.number) for line in lines] == [
        ("a", "k", 0), ("b", "k", 1), ("c", "k", 2),
    ]  # fmt: skip
    assert asked.fingerprint != Ask(RECORD, records[:2]).fingerprint


RULES = Rules.from_document(
    {
        "default_tier": "t",
        "features": {"tokens": {"price": "0.5"}},
        "tiers": {"t": {"limits": {"*": {"max": 10, "per": "day"}}}},
    },
    version=4,
)


def test_the_arguments_are_as_the_header_of_the_script_says():
    two = [usage_record("u", feature, 2, key="k", now_ms=NOW_MS) for feature in ("a", "tokens")]
    asks = [ask(**PLAIN), Ask(RECORD, two), ask(CHECK, **PLAIN)]
    users: dict[UUID, int] = {}

    head = arguments(asks, RULES, shards=8, now_ms=NOW_MS, users=users, place=8)

    first, second, third = asks
    assert users == {first.user_id: 8, second.user_id: 9}
    assert head == [
        NOW_MS, 4, 8, 3, 2, first.mark, second.mark, third.mark, 1, 2,
        1, 8, "c", "tokens", 3, "1500000", first.fingerprint, first.lines[0],
        2, 9, "r", "a", 2, "0", second.fingerprint, second.lines[0],
        1, 9, "r", "tokens", 2, "1000000", second.fingerprint, second.lines[1],
        1, 8, "k", "tokens", 3, "1500000", third.fingerprint, third.lines[0],
    ]  # fmt: skip


def test_what_no_balance_could_pay_is_left_for_the_script_to_refuse():
    costly = ask(**PLAIN | {"amount": 2**53 - 1})

    head = arguments([costly], RULES, shards=8, now_ms=NOW_MS, users={}, place=8)

    assert head[12] == ""


def test_a_reply_without_limits_is_a_decision():
    record = usage_record(now_ms=NOW_MS, **PLAIN)

    decision = decision_of(b"=4;7;-12;|", record, NOW_MS)

    assert (decision.code, decision.allowed) == ("feature_not_in_tier", False)
    assert (decision.cost_micro, decision.credits_micro, decision.limits) == (7, -12, ())
    assert (decision.replayed, decision.key, decision.now_ms) == (True, "k-1", NOW_MS)


def test_a_key_made_for_the_call_is_looked_up_only_when_it_is_sent_again():
    asks = [Ask(CONSUME, [usage_record("u", "tokens", now_ms=NOW_MS)], repeatable=False)]

    def made() -> list[str | bytes | int]:
        return arguments(asks, RULES, shards=8, now_ms=NOW_MS, users={}, place=8)

    assert made()[4] == 0
    assert made()[4] == 1


# Late records


def test_a_record_that_occurred_at_some_time_says_so_in_its_verb():
    occurred = datetime(2025, 1, 1, tzinfo=UTC)
    for verb in (CONSUME, RECORD, CHECK):
        asked = ask(verb, **PLAIN, occurred_at=occurred)

        assert asked.word_by(RULES) == f"{verb}@1735689600000"
        assert asked.verb == verb
    assert ask(**PLAIN).word_by(RULES) == CONSUME


# Holds

PRICED = Rules.from_document(
    {
        "default_tier": "t",
        "features": {"tokens": {"price": "0.0000025", "quality": {"high": "3"}}},
        "tiers": {
            "t": {"limits": {"*": {"max": 10, "per": "day"}}},
            "pro": {"limits": {}, "features": {"tokens": {"price": "0"}}},
        },
    }
)


def reserving(*, ttl_ms: int = 60_000, repeatable: bool = True, **fields: Any) -> Reserving:
    return Reserving(
        usage_record(now_ms=NOW_MS, **PLAIN | fields), ttl_ms=ttl_ms, repeatable=repeatable
    )


def ending(op: str, amount: int = 3, *, cost: int = 0, key: str = "k-1") -> Ending:
    record = usage_record(now_ms=NOW_MS, **PLAIN)
    return Ending(op, UsageRecord(record.user, record.feature, amount, key), cost=cost)


def test_a_reserve_says_how_long_at_which_price_and_which_hold():
    assert reserving().word_by(PRICED) == "h60000;5/2,pro=0/1,;k-1"
    assert reserving(quality="high").word_by(PRICED) == "h60000;15/2,pro=0/1,;k-1"
    assert reserving(feature="other").word_by(PRICED) == "h60000;0/1;k-1"


@pytest.mark.parametrize("key", [*EXOTIC, "a;b", "h1;2;3", ";"])
def test_the_key_of_a_hold_is_the_rest_of_the_word(key: str):
    word = reserving(key=key).word_by(PRICED)

    assert word.split(";", 2)[2] == key
    assert ending(COMMIT, key=key).word_by(PRICED) == "sc" + key


def test_a_hold_of_another_ttl_or_a_consume_is_another_payload_of_the_key():
    prints = {
        reserving().fingerprint,
        reserving(ttl_ms=1_000).fingerprint,
        ask(**PLAIN).fingerprint,
    }

    assert len(prints) == 3
    assert reserving().fingerprint == reserving().fingerprint
    assert reserving().mark == ask(**PLAIN).mark


def test_a_hold_is_logged_as_a_consume_is():
    assert reserving().lines == ask(**PLAIN).lines


@pytest.mark.parametrize(
    ("op", "word"), [(COMMIT, "sck-1"), (COMMIT_ALL, "sak-1"), (RELEASE, "srk-1")]
)
def test_an_end_names_its_hold(op: str, word: str):
    assert ending(op).word_by(PRICED) == word
    assert ending(op).verb == "s"
    assert ending(op).repeatable


def test_the_ends_of_a_hold_share_a_mark_that_is_not_the_reserves():
    marks = {ending(op, amount).mark for op in (COMMIT, COMMIT_ALL, RELEASE) for amount in (0, 3)}

    assert marks == {end_mark_of(ending(COMMIT).user_id, "k-1")}
    assert reserving().mark not in marks
    assert ending(COMMIT, key="k-2").mark not in marks


def test_the_cost_of_an_end_is_by_the_price_of_its_reserve():
    users: dict[UUID, int] = {}

    head = arguments(
        [reserving(), ending(COMMIT, 2, cost=7)],
        PRICED,
        shards=8,
        now_ms=NOW_MS,
        users=users,
        place=8,
    )

    one, other = reserving(), ending(COMMIT, 2)
    assert head == [
        NOW_MS, 0, 8, 2, 2, one.mark, other.mark, 1, 2,
        1, 8, "h60000;5/2,pro=0/1,;k-1", "tokens", 3, "8,pro=0,", one.fingerprint, one.lines[0],
        1, 8, "sck-1", "tokens", 2, "7", other.fingerprint, other.lines[0],
    ]  # fmt: skip


@pytest.mark.parametrize("key", ["k-1", *EXOTIC])
def test_the_line_of_an_end_is_that_of_a_release(key: str):
    released = ending(RELEASE, 0, key=key)

    line = ending_line(released.records[0].user, "tokens", key)

    assert line == released.lines[0]
    assert json.loads(line) == ["user-1", "tokens", 0, key, 0]


@pytest.mark.parametrize(
    ("reply", "status", "amount", "cost", "replayed"),
    [
        (b"committed;3;18", "committed", 3, 18, False),
        (b"=committed;3;18", "committed", 3, 18, True),
        (b"committed;0;0", "committed", 0, 0, False),
        (b"released;0;0", "released", 0, 0, False),
        (b"=released;0;0", "released", 0, 0, True),
        (b"=expired;0;0", "expired", 0, 0, True),
        (b"committed;9007199254740991;9007199254740991", "committed", 2**53 - 1, 2**53 - 1, False),
    ],
)
def test_a_reply_says_how_a_hold_ended(
    reply: bytes, status: str, amount: int, cost: int, replayed: bool
):
    found = settlement_of(reply, ending(COMMIT).records[0], NOW_MS)

    assert (found.hold, found.status, found.decision) == ("k-1", status, None)
    assert (found.amount, found.cost_micro, found.replayed) == (amount, cost, replayed)


def test_a_reply_says_why_the_surplus_of_a_commit_was_denied():
    found = settlement_of(b"open;2;3;7;5;|", ending(COMMIT, 5).records[0], NOW_MS)

    assert not found
    assert (found.status, found.amount, found.cost_micro) == ("open", 0, 0)
    assert found.decision is not None
    assert (found.decision.code, found.decision.amount) == ("insufficient_credits", 2)
    assert (found.decision.cost_micro, found.decision.credits_micro) == (7, 5)
