from __future__ import annotations

from itertools import permutations

from hypothesis import given
from hypothesis import strategies as st

from service.opened import add_opened, has_units_of

SECONDS = 300
LENGTH_MS = SECONDS * 1000


def counted(*uses: tuple[int, int]) -> tuple[int, int] | None:
    running = None
    for end_ms, units in uses:
        running = add_opened(running, end_ms, units, seconds=SECONDS)
    return running


def test_two_that_overlap_are_one_that_ends_first():
    for uses in permutations([(500_000, 5), (600_000, 40)]):
        assert counted(*uses) == (500_000, 45)


def test_one_that_begins_as_the_other_ends_replaces_it_whichever_is_told_first():
    for uses in permutations([(500_000, 5), (500_000 + LENGTH_MS, 40)]):
        assert counted(*uses) == (800_000, 40)


def test_what_comes_back_leaves_the_window_that_it_has_become_one_with():
    assert counted((600_000, 30), (500_000, 5), (600_000, -20)) == (500_000, 15)


def test_what_comes_back_leaves_no_window_that_came_after_it():
    # The second is one with the first; the third overlaps with the second alone.
    assert counted((500_000, 5), (600_000, 30), (801_000, 2), (600_000, -20)) == (801_000, 2)


@given(
    ends=st.lists(st.integers(0, 3_000_000), min_size=1, max_size=6).map(sorted),
    back=st.integers(1, 50),
)
def test_of_windows_in_their_order_the_units_of_the_last_are_always_counted(
    ends: list[int], back: int
):
    running = counted(*((end_ms, 10) for end_ms in ends))

    assert running is not None
    assert has_units_of(running[0], ends[-1], seconds=SECONDS)
    end_ms, left = add_opened(running, ends[-1], -back, seconds=SECONDS)
    assert (end_ms, left) == (running[0], max(0, running[1] - back))
