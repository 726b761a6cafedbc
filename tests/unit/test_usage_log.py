from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quota.values import METADATA_BYTES_MAX, parse_user_id, usage_record
from quota.wire import Ask
from service.usage_log import (
    Code,
    Entries,
    NewerVersionError,
    decode_entry,
    decode_lines,
    users_in,
)

ENTRY_ID = "1750000000000-0"
AT_MS = 1_750_000_000_000
GOOD = ["user-1", "tokens", 3, "k-1", 0]
EXTRAS = ["video", "high", {"a": 1}, AT_MS - 1, "e-1", "type", "1.2", "s-1"]
ONE = json.dumps([GOOD]).encode()
NOT_NUMBERS = [
    b"",
    b"abc",
    b"-5",
    b"1.5",
    b"nan",
    b"NaN",
    b"inf",
    b"1e3",
    b"0x10",
    b" 7",
    b"\xd9\xa3",
]


def entry(lines: bytes, costs: bytes, **fields: bytes | None) -> dict[bytes, bytes]:
    plain: dict[str, bytes | None] = {
        "v": b"1",
        "e": b"1",
        "t": b"%d" % AT_MS,
        "c": costs,
        "r": lines,
    }
    plain |= fields
    return {name.encode(): text for name, text in plain.items() if text is not None}


def decoded(fields: dict[bytes, bytes]) -> Entries:
    run = Entries(after="0-0", last="0-0")
    decode_entry(run, ENTRY_ID, fields)
    return run


def beside_good_neighbours(poison: bytes, cost: bytes = b"7") -> Entries:
    good = json.dumps(GOOD).encode()
    return decoded(entry(b"[" + good + b"," + poison + b"," + good + b"]", b"5," + cost + b",6,"))


def test_a_good_entry_is_read_whole():
    lines = json.dumps([GOOD, [*GOOD[:4], 1, *EXTRAS]]).encode()

    run = decoded(entry(lines, b"5,6,", w=b"300:1750000000300;60:1750000000060;,"))

    assert run.unreadable == []
    (first_user, first, first_cost, at_ms, entry_id), (_, second, second_cost, _, _) = run.lines
    assert (first_user, at_ms, entry_id) == (parse_user_id("user-1").id, AT_MS, ENTRY_ID)
    assert (first_cost, second_cost) == (5, 6)
    assert [first.user, first.feature, first.amount, first.key, first.number] == GOOD
    assert first.windows == [(300, AT_MS + 300), (60, AT_MS + 60)]
    assert second.windows is None
    assert bytes(first.metadata) == b"null"
    assert bytes(second.metadata) == b'{"a": 1}'
    rest = [second.format, second.quality, second.occurred_at_ms, second.event_id]
    rest += [second.event_type, second.product_version, second.session_id]
    assert rest == [*EXTRAS[:2], *EXTRAS[3:]]


def test_a_window_with_two_limits_is_one_count():
    run = decoded(entry(ONE, b"5,", w=b"60:1750000000060;300:1750000000300;60:1750000000060;"))

    [(_, line, *_)] = run.lines
    assert line.windows == [(60, AT_MS + 60), (300, AT_MS + 300)]


def test_an_entry_says_what_its_lines_do_to_holds():
    ended = ["user-1", "tokens", 0, "k-1", 0]
    lines = json.dumps([GOOD, GOOD, [*GOOD[:2], 5, *GOOD[3:]], ended, ended, ended]).encode()
    codes = b",h1750000060000;2500000/3,c,c,r,x1750000060000"

    run = decoded(entry(lines, b"5,6,7,0,0,0,", v=b"2", k=codes))

    assert run.unreadable == []
    assert [line.code for _, line, *_ in run.lines] == [
        None,
        Code("h", 1_750_000_060_000, "2500000/3"),
        Code("c"),
        Code("c"),
        Code("r"),
        Code("x", 1_750_000_060_000),
    ]
    assert [line.amount for _, line, *_ in run.lines] == [3, 3, 5, 0, 0, 0]


def test_a_line_cannot_say_by_itself_that_it_does_something_to_a_hold():
    line = [*GOOD, *EXTRAS, [[300, 1]], ["r", 0, ""]]

    [(_, read, *_)] = decoded(entry(json.dumps([line]).encode(), b"5,")).lines

    assert (read.windows, read.code) == (None, None)


@pytest.mark.parametrize(
    "code",
    [
        *(b"q", b"h", b"h5", b"h5;", b"h5;1", b"h5;1/", b"h5;/1", b"h5;1/0", b"h5;-1/2", b"h5;1/2/3"),
        *(b"h;1/2", b"h-5;1/2", b"h" + b"9" * 20 + b";1/2", b"h5;" + b"9" * 500 + b"/2", b"h5;1/2\n"),
        *(b"c1", b"cc", b"r0", b"x", b"x-1", b"x" + b"9" * 20, b"\xff", b"H5;1/2", b" c", b"c "),
    ],
)  # fmt: skip
def test_a_line_with_a_wrong_code_is_told_apart_from_its_neighbours(code: bytes):
    line = json.dumps(GOOD).encode()
    fields = entry(b"[" + b",".join([line] * 3) + b"]", b"5,6,7,", v=b"2", k=b"c," + code + b",")

    run = decoded(fields)

    assert [cost for _, _, cost, _, _ in run.lines] == [5, 7]
    [unreadable] = run.unreadable
    assert (unreadable.place, unreadable.reason[:1] != "") == (f"{ENTRY_ID}/1", True)


@pytest.mark.parametrize(
    ("code", "read"), [(b"", 0), (b"h5;1/2", 0), (b"c", 1), (b"r", 1), (b"x5", 1)]
)
def test_only_the_end_of_a_hold_may_be_of_no_units(code: bytes, read: int):
    fields = entry(wrong_amount(0), b"0,", v=b"2", k=code)

    run = decoded(fields)

    assert (len(run.lines), len(run.unreadable)) == (read, 1 - read)


@pytest.mark.parametrize("amount", [-1, 2**53, 0.0, False, None])
def test_the_end_of_a_hold_is_of_a_sound_number_of_units(amount: Any):
    run = decoded(entry(wrong_amount(amount), b"0,", v=b"2", k=b"c"))

    assert (len(run.lines), len(run.unreadable)) == (0, 1)


def wrong_amount(amount: Any) -> bytes:
    return json.dumps([[*GOOD[:2], amount, *GOOD[3:]]]).encode()


def wrong(place: int, value: Any) -> bytes:
    return json.dumps([*GOOD[:place], value, *GOOD[place + 1 :]]).encode()


def wrong_extra(place: int, value: Any) -> bytes:
    return json.dumps([*GOOD, *EXTRAS[:place], value, *EXTRAS[place + 1 :]]).encode()


POISON_LINES = [
    b"7",
    b"null",
    b"[]",
    b'"user-1"',
    json.dumps(dict(enumerate(GOOD))).encode(),
    *(json.dumps(GOOD[:length]).encode() for length in range(1, 5)),
    *(wrong(0, user) for user in ("", "x" * 201, "a\0b", "a\nb", 7, None, ["u"])),
    *(wrong(1, feature) for feature in ("", "Tokens", "a b", "a\0", "x" * 101, 7, None)),
    *(wrong(2, amount) for amount in (0, -1, 2**53, 2**70, 10**400, 1.5, True, "3", None)),
    *(wrong(3, key) for key in ("", "x" * 201, "a\0b", 7, None)),
    *(wrong(4, number) for number in (-1, 32_768, 2**70, 1.5, "0", None)),
    *(wrong_extra(place, 7) for place in (0, 1, 4, 5, 6, 7)),
    *(wrong_extra(place, "x" * 201) for place in (0, 1, 4, 5, 6, 7)),
    *(wrong_extra(2, {"a": "x" * size}) for size in (METADATA_BYTES_MAX - 7, 20_000_000)),
    *(wrong_extra(3, occurred_at) for occurred_at in (-1, 10**15, 10**18, 2**70, 1.5, "now")),
    json.dumps([*GOOD, *EXTRAS]).encode().replace(b'"a"', b'"\xff"'),
    b'["user-\xff","tokens",3,"k-1",0]',
]  # fmt: skip


@pytest.mark.parametrize("poison", POISON_LINES)
def test_a_poison_line_is_told_apart_from_its_neighbours(poison: bytes):
    run = beside_good_neighbours(poison)

    assert [(line.key, cost) for _, line, cost, _, _ in run.lines] == [("k-1", 5), ("k-1", 6)]
    [unreadable] = run.unreadable
    assert unreadable.place == f"{ENTRY_ID}/1"
    assert unreadable.raw == poison
    assert unreadable.reason


def test_texts_and_metadata_as_long_as_a_client_takes_them_are_read():
    text = "🍅" * 200
    metadata = '{"a":"' + "x" * (METADATA_BYTES_MAX - 8) + '"}'
    record = usage_record(
        text, "f" * 100, key=text, metadata=json.loads(metadata), now_ms=AT_MS,
        format=text, quality=text, event_id=text, event_type=text, product_version=text, session_id=text,
    )  # fmt: skip

    run = decoded(entry(f"[{Ask('c', [record]).lines[0]}]".encode(), b"5,"))

    assert run.unreadable == []
    [(_, line, *_)] = run.lines
    assert bytes(line.metadata).decode() == metadata
    assert {line.user, line.key, line.format, line.quality, line.event_id} == {text}


@pytest.mark.parametrize("cost", [*NOT_NUMBERS, b"9007199254740992", b"9" * 30, b"9" * 5000])
def test_a_line_with_a_wrong_cost_is_told_apart_from_its_neighbours(cost: bytes):
    run = beside_good_neighbours(json.dumps(GOOD).encode(), cost)

    assert [cost for _, _, cost, _, _ in run.lines] == [5, 6]
    assert [(one.place, one.reason[:5]) for one in run.unreadable] == [(f"{ENTRY_ID}/1", "cost:")]


@pytest.mark.parametrize(
    "windows", [b"x", b"300", b"300:", b"0:5;", b"300:-1;", b"9" * 5000 + b":1"]
)
def test_a_line_with_wrong_windows_is_told_apart_from_its_neighbours(windows: bytes):
    line = json.dumps(GOOD).encode()
    fields = entry(b"[" + line + b"," + line + b"]", b"5,6,", w=b"300:1750000000300;," + windows)

    run = decoded(fields)

    assert [cost for _, _, cost, _, _ in run.lines] == [5]
    assert [one.place for one in run.unreadable] == [f"{ENTRY_ID}/1"]


POISON_ENTRIES: list[tuple[dict[bytes, bytes], str]] = [
    ({}, "v"),
    ({b"junk": b"\xff\x00"}, "v"),
    *((entry(ONE, b"5,", **{name: None}), name) for name in ("v", "t", "c", "r")),
    *((entry(ONE, b"5,", v=version), "v:") for version in (b"", b"0", b"one", b"-2", b"9" * 5000)),
    *((entry(ONE, b"5,", t=at_ms), "t:") for at_ms in (*NOT_NUMBERS, b"9" * 15, b"9" * 5000)),
    *((entry(ONE, costs), "costs") for costs in (b"5,6,", b"5,6,7,")),
    *(
        (entry(lines, b"5,"), "")
        for lines in (b"", b"{", b"[", b"{}", b"7", b"[NaN]", b"\x80\x04.")
    ),
    (entry(b"[]", b""), "costs"),
    (entry(ONE, b"5,", w=b",,"), "windows"),
    (entry(ONE, b"5,", k=b",,", v=b"2"), "codes"),
    (
        entry(
            b'[["user-1","tokens",1,"k",0,null,null,' + b"[" * 100_000 + b"]" * 100_000 + b"]]",
            b"5,",
        ),
        "",
    ),
]


@pytest.mark.parametrize(("fields", "reason"), POISON_ENTRIES)
def test_an_entry_that_nobody_can_read_is_set_aside_whole(fields: dict[bytes, bytes], reason: str):
    run = decoded(fields)

    assert run.lines == []
    [unreadable] = run.unreadable
    assert unreadable.place == ENTRY_ID
    assert reason in unreadable.reason
    kept = json.loads(unreadable.raw)
    assert {name.encode("latin-1"): kept[name].encode("latin-1") for name in kept} == fields


@pytest.mark.parametrize("version", [b"3", b"10", b"999999999"])
def test_an_entry_of_a_newer_version_is_left_for_a_newer_worker(version: bytes):
    with pytest.raises(NewerVersionError, match=version.decode()):
        decoded(entry(ONE, b"5,", v=version))


@given(
    fields=st.dictionaries(
        st.sampled_from([b"v", b"t", b"c", b"r", b"w", b"k"]),
        st.one_of(st.binary(max_size=30), st.sampled_from([b"1", b"2", b"5,", ONE, b"c", b"x7"])),
    )
)
def test_nothing_in_an_entry_raises(fields: dict[bytes, bytes]):
    try:
        run = decoded(fields)
    except NewerVersionError:
        assert int(fields[b"v"]) > 2
    else:
        assert run.lines or run.unreadable


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(lines=st.lists(json_values | st.just(GOOD), min_size=1, max_size=5))
def test_every_line_is_either_read_or_set_aside(lines: list[Any]):
    text = json.dumps(lines).encode()

    run = decoded(entry(text, b"5," * len(lines)))

    if b"NaN" in text or b"Infinity" in text:  # not JSON: the entry is one piece
        assert len(run.lines) + len(run.unreadable) >= 1
    else:
        assert len(run.lines) + len(run.unreadable) == len(lines)
        assert len(run.lines) >= sum(line == GOOD for line in lines)


HOLD = ["user-2", "tokens", 0, "k-2", 0]
OTHERS = [
    ["user-1"],
    ["user-1", 7],
    [7, *GOOD[1:]],
    ["", *GOOD[1:]],
    ["user-3", "tokens", -1, "k", 0],
]
codes = st.sampled_from([b"", b"c", b"h1750000000000;1/2", b"x7", b"poison"])


@given(
    lines=st.lists(json_values | st.sampled_from([GOOD, HOLD, *OTHERS]), max_size=5),
    costs=st.lists(st.sampled_from([b"5", b"", b"-1"]), min_size=5, max_size=5),
    kinds=st.none() | st.lists(codes, min_size=5, max_size=5),
    windows=st.sampled_from([None, b"60:1750000000060;", b"poison"]),
    chosen=st.sets(st.integers(0, 4)),
    broken=st.booleans(),
)
def test_some_lines_of_an_entry_are_read_as_they_are_with_the_others(
    lines: list[Any],
    costs: list[bytes],
    kinds: list[bytes] | None,
    windows: bytes | None,
    chosen: set[int],
    broken: bool,
):
    count = len(lines)
    fields = entry(
        json.dumps(lines).encode() + b"]" * broken,
        b"".join(cost + b"," for cost in costs[:count]),
        k=None if kinds is None else b",".join(kinds[:count]),
        w=None if windows is None else b",".join([windows] * count),
        v=b"2",
    )
    whole = decoded(fields)
    refused = {one.place for one in whole.unreadable}
    read = [number for number in range(count) if f"{ENTRY_ID}/{number}" not in refused]
    by_number = dict(zip(read, whole.lines, strict=False)) if ENTRY_ID not in refused else {}
    users = users_in(ENTRY_ID, fields)
    some = Entries(after="0-0", last="0-0")

    decode_lines(some, ENTRY_ID, fields, sorted(number for number in chosen if number < len(users)))

    assert some.lines == [by_number[number] for number in sorted(chosen) if number in by_number]
    assert all(users[number] == line.user for number, (_, line, *_) in by_number.items())


def test_a_part_of_an_entry_of_a_newer_version_is_left_too():
    fields = entry(ONE, b"5,", v=b"3")

    with pytest.raises(NewerVersionError):
        users_in(ENTRY_ID, fields)
    with pytest.raises(NewerVersionError):
        decode_lines(Entries(after="0-0", last="0-0"), ENTRY_ID, fields, [0])
