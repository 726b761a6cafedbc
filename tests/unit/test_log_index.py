from __future__ import annotations

from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from service.log_index import EntryNumber, LineMarks, mark_of_user

USERS = [UUID(int=number) for number in (*range(10), 2**64, 2**127)]
MARKS = [mark_of_user(user) for user in USERS]
# Bytes of one mark that are bytes of others, across their borders.
ALIKE = [bytes(8), bytes([0, 0, 0, 0, 0, 0, 0, 1]), bytes([1, 0, 0, 0, 0, 0, 0, 0])]

marks = st.sampled_from([*MARKS, *ALIKE])
entries = st.lists(st.lists(marks, max_size=5), max_size=12)


def expected(
    kept: list[tuple[EntryNumber, list[bytes]]], wanted: set[bytes]
) -> list[tuple[EntryNumber, list[int]]]:
    found = []
    for entry, lines in kept:
        numbers = [number for number, mark in enumerate(lines) if mark in wanted]
        if numbers:
            found.append((entry, numbers))
    return found


@given(entries, st.lists(st.integers(0, 14), max_size=4), entries, st.sets(marks))
def test_the_lines_of_some_users_are_found_whatever_was_cut_before(
    first: list[list[bytes]],
    positions: list[int],
    second: list[list[bytes]],
    wanted: set[bytes],
) -> None:
    lines, kept = LineMarks(), []
    for number, own in enumerate(first):
        lines.add((number, 2**40), b"".join(own))
        kept.append(((number, 2**40), own))
    for position in positions:
        lines.cut((position, 0))
        kept = [(entry, own) for entry, own in kept if entry > (position, 0)]
    for number, own in enumerate(second, start=100):
        lines.add((number, 0), b"".join(own))
        kept.append(((number, 0), own))

    assert lines.lines_of(wanted) == expected(kept, wanted)
    assert len(lines) == sum(len(own) for _, own in kept)


def test_a_million_lines_take_little_memory() -> None:
    lines = LineMarks()
    own = b"".join(MARKS)
    for number in range(1_000_000 // len(USERS)):
        lines.add((number, 0), own)

    assert lines.size_bytes() < 16 * 1024 * 1024
