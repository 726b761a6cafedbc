from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quota.held import FIELD, Held
from quota.period import CALENDAR_PERIODS

PLAIN = Held("k", "tokens", 5, 30, (5, 2), 1_000, {"day": 900, "window:300": 700, "lifetime": 0})

features = st.from_regex(r"[a-z][a-z0-9_.:-]{0,99}", fullmatch=True)
counts = st.integers(0, 2**53 - 1)
segments = st.lists(st.tuples(st.integers(1, 2**53 - 1), st.booleans()), max_size=4)
holds = st.builds(
    Held,
    key=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1),
    feature=features,
    amount=st.integers(1, 2**53 - 1),
    cost=counts,
    price=st.tuples(st.integers(0, 10**90), st.integers(1, 10**36)),
    expires_at_ms=counts,
    ends=st.dictionaries(
        st.sampled_from([*CALENDAR_PERIODS, "window:1", "window:31622400"]), counts
    ),
)


@given(held=holds, paid=segments)
def test_a_hold_comes_back_from_its_field(held: Held, paid: list[tuple[int, bool]]):
    text = held.dump(paid)

    assert Held.load(held.key, text.encode()) == held
    assert list(Held.load(held.key, text.encode()).ends) == list(held.ends)  # and in order


@pytest.mark.parametrize("key", ["a|b", "a;b,c=d", "a\nb\r", "\u2028", "o:o:", "|", "ü😀", " "])
def test_a_key_of_any_text_is_no_part_of_the_value(key: str):
    held = replace(PLAIN, key=key)

    assert held.dump([]) == PLAIN.dump([])
    assert Held.load(key, held.dump([]).encode()) == held


def test_the_field_is_what_the_script_takes_apart():
    assert PLAIN.dump([(20, True), (10, False)]) == (
        "1000|tokens|5|30|5/2|d=900,s300=700,l=0,|20+,10-,"
    )
    assert replace(PLAIN, ends={}).dump([]) == "1000|tokens|5|30|5/2||"
    assert FIELD == "o:"
