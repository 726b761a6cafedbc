from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quota.burndown import Grant
from quota.period import Calendar, window_at
from quota.values import instant_ms, instant_of, new_key, uuid7_time_ms
from quota.wire import mark_of
from service.usage_log import Line
from worker.batch import COLUMNS, KEY_SKEW_MS, PERIODS, Batch, Member, fold, keyed

BOUNDARY_MS = instant_ms(datetime(2025, 3, 31, 22, tzinfo=UTC))  # April begins in Berlin
HOUR_MS = 3_600_000
BERLIN, UTC_CALENDAR = Calendar("Europe/Berlin"), Calendar("UTC", BOUNDARY_MS - 5, 1)
USERS = (UUID(int=1), UUID(int=2))
NUMBER = {name: place for place, name in enumerate(COLUMNS)}

Logged = tuple[UUID, Line, int, int, str]
# In the log: user, line, cost, instant, id of the entry.


def grant(number: int, left: int, **fields: int | None) -> Grant:
    plain = Grant(id=UUID(int=number), amount=100, left=left, effective_at_ms=0, created_at_ms=0)
    return replace(plain, **fields)  # type: ignore[arg-type]


def logged(
    key: str, *, user: UUID = USERS[0], at_ms: int = BOUNDARY_MS, cost: int = 0, **fields: Any
) -> Logged:
    line = Line(
        **{"user": str(user), "feature": "tokens", "amount": 1, "number": 0, **fields, "key": key}
    )
    return user, line, cost, at_ms, f"{at_ms}-0"


def members(*grants: Grant, calendar: Calendar = BERLIN) -> dict[UUID, Member]:
    return {user: Member(calendar, 0, 0, grants) for user in USERS}


def folded(lines: list[Logged], of: dict[UUID, Member], skipped: set[int] | None = None) -> Batch:
    return fold(lines, keyed(lines), skipped or set(), of)


lines = st.builds(
    logged,
    key=st.sampled_from(["k", "order-7", new_key(now_ms=BOUNDARY_MS), new_key(now_ms=5)]),
    user=st.sampled_from(USERS),
    at_ms=st.integers(-8, 8).map(lambda step: BOUNDARY_MS + step * HOUR_MS // 2),
    cost=st.integers(0, 60),
    feature=st.sampled_from(["tokens", "calls"]),
    amount=st.integers(1, 9),
    metadata=st.sampled_from([msgspec.Raw(b"null"), msgspec.Raw(b'{"a":1}'), msgspec.Raw(b"{}")]),
    windows=st.none() | st.lists(st.tuples(st.just(300), st.sampled_from([1_000, 2_000]))),
)


def in_order(run: list[Logged]) -> list[Logged]:
    """As the log has them: by time, and each under a key of its own."""
    run = sorted(run, key=lambda line: line[3])
    return [
        (
            user,
            msgspec.structs.replace(line, key=f"{line.key[:-4]}{number:04x}"),
            cost,
            at_ms,
            entry,
        )
        for number, (user, line, cost, at_ms, entry) in enumerate(run)
    ]


runs = st.lists(lines, max_size=12).map(in_order)
moments = st.integers(-5, 5).map(lambda step: BOUNDARY_MS + step * HOUR_MS)
purses = st.lists(
    st.builds(
        Grant,
        id=st.uuids(),
        amount=st.just(60),
        left=st.integers(0, 60),
        priority=st.integers(0, 1),
        effective_at_ms=moments,
        expires_at_ms=st.none() | moments,
        created_at_ms=st.just(0),
    ),
    max_size=4,
    unique_by=lambda grant: grant.id,
)
calendars = st.sampled_from([BERLIN, UTC_CALENDAR])


@given(run=runs, purse=purses, calendar=calendars)
def test_folding_a_run_twice_gives_the_same_rows(
    run: list[Logged], purse: list[Grant], calendar: Calendar
):
    of = members(*purse, calendar=calendar)

    assert folded(run, of) == folded(run, of)
    assert keyed(run) == keyed(run)


@dataclass
class Stored:
    """What PostgreSQL has after each batch, as the statements in worker/sql leave it."""

    of: dict[UUID, Member]
    logs: list[tuple[Any, ...]] = field(default_factory=list)
    keys: list[tuple[Any, ...]] = field(default_factory=list)
    usage: dict[Any, list[Any]] = field(default_factory=dict)
    windows: dict[Any, tuple[int, int]] = field(default_factory=dict)
    entries: Counter[tuple[Any, ...]] = field(default_factory=Counter)

    def apply(self, run: list[Logged]) -> None:
        batch = folded(run, self.of)
        self.logs += batch.logs
        self.keys += batch.keys
        for user, grant_id, usage_id, kind, micro, _ in batch.entries:
            self.entries[user, grant_id, usage_id, kind] += micro
        for key, row in batch.usage.items():
            self._add_usage(key, row)
        for window, (end_ms, units) in batch.windows.items():
            self._add_window(window, end_ms, units)
        self._settle(batch)

    def _add_usage(self, key: Any, row: list[Any]) -> None:
        units, last, metadata, starts, counts = row
        if key not in self.usage:
            self.usage[key] = [units, last, metadata, list(starts), list(counts)]
            return
        stored = self.usage[key]
        stored[0] += units
        stored[1], stored[2] = max(stored[1], last), metadata or stored[2]
        for place, (start, count) in enumerate(zip(starts, counts, strict=True)):
            if start > stored[3][place]:
                stored[3][place], stored[4][place] = start, count
            elif start == stored[3][place]:
                stored[4][place] += count

    def _add_window(self, key: Any, end_ms: int, units: int) -> None:
        running_end_ms, before = self.windows.get(key, (end_ms, 0))
        if end_ms > running_end_ms:
            self.windows[key] = (end_ms, units)
        elif end_ms == running_end_ms:
            self.windows[key] = (end_ms, before + units)

    def _settle(self, batch: Batch) -> None:
        left = {(user, grant_id): micro for user, grant_id, micro in batch.grants_left}
        overages = dict(batch.overages)
        grew = {entry[0]: instant_ms(entry[5]) for entry in batch.entries if entry[1] is None}
        for user, member in self.of.items():
            grants = [
                replace(one, left=left.get((user, one.id), one.left)) for one in member.grants
            ]
            self.of[user] = member._replace(
                overage=overages.get(user, member.overage),
                overage_at_ms=grew.get(user, member.overage_at_ms),
                grants=[one for one in grants if one.left],
            )


@settings(max_examples=300)
@given(run=runs, purse=purses, calendar=calendars, data=st.data())
def test_two_folds_of_the_halves_come_to_one_fold_of_the_whole(
    run: list[Logged], purse: list[Grant], calendar: Calendar, data: st.DataObject
):
    cut = data.draw(st.integers(0, len(run)))
    whole, halves = (Stored(members(*purse, calendar=calendar)) for _ in range(2))

    whole.apply(run)
    halves.apply(run[:cut])
    halves.apply(run[cut:])

    assert halves.logs == whole.logs
    assert halves.keys == whole.keys
    assert halves.usage == whole.usage
    assert halves.windows == whole.windows
    assert halves.entries == whole.entries
    assert {user: (one.overage, list(one.grants)) for user, one in halves.of.items()} == {
        user: (one.overage, list(one.grants)) for user, one in whole.of.items()
    }


@given(run=runs, purse=purses)
def test_every_cost_is_paid_by_a_grant_or_is_overage(run: list[Logged], purse: list[Grant]):
    batch = folded(run, members(*purse))

    burnt: Counter[Any] = Counter()
    for _, _, usage_id, kind, micro, _ in batch.entries:
        if kind == "burn":
            burnt[usage_id] += micro
    ids = keyed(run).ids
    assert burnt == Counter({ids[n]: cost for n, (_, _, cost, _, _) in enumerate(run) if cost})
    paid = sum(micro for _, grant_id, _, _, micro, _ in batch.entries if grant_id is not None)
    left = {(user, one.id): one.left for user in USERS for one in purse}
    gone = sum(left[user, grant_id] - micro for user, grant_id, micro in batch.grants_left)
    assert gone == paid
    assert sum(micro for _, micro in batch.overages) == sum(cost for _, _, cost, _, _ in run) - paid


@given(run=runs)
def test_units_are_counted_where_a_reader_of_the_log_would_count_them(run: list[Logged]):
    batch = folded(run, members())

    for (user, feature), (units, last, _, starts, counts) in batch.usage.items():
        own = [(line, at) for of, line, _, at, _ in run if (of, line.feature) == (user, feature)]
        assert units == sum(line.amount for line, _ in own)
        assert last == instant_of(max(at for _, at in own))
        for per, start, count in zip(PERIODS, starts, counts, strict=True):
            running = window_at(per, instant_ms(last), BERLIN)
            assert instant_ms(start) == running.start_ms
            assert count == sum(line.amount for line, at in own if at >= running.start_ms)


@given(run=runs, data=st.data())
def test_what_was_applied_before_leaves_no_trace(run: list[Logged], data: st.DataObject):
    skipped = data.draw(st.sets(st.sampled_from(range(len(run))))) if run else set()
    of = members(grant(1, left=50))

    batch = folded(run, of, skipped)
    rest = folded([line for number, line in enumerate(run) if number not in skipped], of)

    assert batch == rest


def test_a_row_says_all_that_the_line_says():
    key = new_key(now_ms=BOUNDARY_MS)
    line = logged(
        key,
        cost=2_500_000,
        amount=7,
        format="video",
        quality="high",
        metadata=msgspec.Raw(b'{"a":1}'),
        occurred_at_ms=BOUNDARY_MS - 1,
        event_id="e",
        event_type="t",
        product_version="1",
        session_id="s",
    )

    [row] = folded([line], members()).logs

    assert dict(zip(COLUMNS, row, strict=True)) == {
        "id": key,
        "user_id": USERS[0],
        "action": "tokens",
        "amount": 7,
        "credits_consumed": Decimal("2.5"),
        "metadata": '{"a":1}',
        "created_at": instant_of(BOUNDARY_MS - 1),
        "format": "video",
        "quality": "high",
        "key": None,  # it is the id
        "line": 0,
        "event_id": "e",
        "event_type": "t",
        "product_version": "1",
        "session_id": "s",
    }


def test_a_key_of_the_callers_own_is_kept_beside_an_id_made_from_it():
    [row] = folded([logged("order-7")], members()).logs

    assert row[NUMBER["key"]] == "order-7"
    assert uuid7_time_ms(str(row[NUMBER["id"]])) == BOUNDARY_MS


@given(run=runs, data=st.data())
def test_the_id_of_a_line_does_not_depend_on_what_is_read_with_it(
    run: list[Logged], data: st.DataObject
):
    cut = data.draw(st.integers(0, len(run)))

    assert keyed(run[:cut]).ids + keyed(run[cut:]).ids == keyed(run).ids


def test_every_line_has_an_id_of_its_own():
    timed = new_key(now_ms=BOUNDARY_MS)
    run = [
        logged(key, user=user, number=number)
        for user in USERS
        for key in ("k", "k/1", "k1", timed)
        for number in range(12)
    ]
    heads_of_timed = {(user, timed) for user in USERS}  # the same key of two users: the same id

    ids = [(user, str(usage_id)) for (user, *_), usage_id in zip(run, keyed(run).ids, strict=True)]

    assert len(set(ids)) == len(run)
    assert heads_of_timed <= set(ids)
    assert all(uuid7_time_ms(text) == BOUNDARY_MS for _, text in ids)


@pytest.mark.parametrize(
    ("key_ms", "timed", "marked"),
    [
        (None, False, True),
        (BOUNDARY_MS, True, False),
        (BOUNDARY_MS + KEY_SKEW_MS, True, False),
        (BOUNDARY_MS + KEY_SKEW_MS + 1, True, True),
        (BOUNDARY_MS - KEY_SKEW_MS - 1, True, True),
        (2**48 - 1, True, True),
        (0, True, True),
    ],
)
def test_a_key_is_remembered_by_its_mark_unless_it_carries_the_time_of_the_record(
    key_ms: int | None, timed: bool, marked: bool
):
    key = "order-7" if key_ms is None else new_key(now_ms=key_ms)

    found = keyed([logged(key)])

    assert found.timed == ([0] if timed else [])
    assert found.marked == ([(0, UUID(bytes=mark_of(USERS[0], key)))] if marked else [])


def test_the_further_lines_of_a_record_are_found_by_their_head_alone():
    found = keyed([logged("k"), logged("k", number=1), logged(new_key(now_ms=9), number=2)])

    assert [number for number, _ in found.marked] == [0]
    assert found.timed == []


def test_a_late_record_belongs_to_the_period_in_which_it_was_admitted():
    late = logged("k", at_ms=BOUNDARY_MS, occurred_at_ms=BOUNDARY_MS - 5 * HOUR_MS)

    batch = folded([late], members())

    [(_, last, _, starts, _)] = batch.usage.values()
    assert last == instant_of(BOUNDARY_MS - 5 * HOUR_MS)
    assert starts[PERIODS.index("month")] == instant_of(BOUNDARY_MS)


def test_the_metadata_kept_is_that_of_the_last_use_that_had_some():
    some, none = msgspec.Raw(b'{"a":1}'), msgspec.Raw(b"null")
    run = [
        logged("k1", at_ms=BOUNDARY_MS, metadata=msgspec.Raw(b'{"a":0}')),
        logged("k2", at_ms=BOUNDARY_MS + 1, metadata=some),
        logged("k3", at_ms=BOUNDARY_MS + 2, metadata=none),
    ]

    [(_, _, metadata, _, _)] = folded(run, members()).usage.values()

    assert metadata == '{"a":1}'


def test_a_grant_that_was_over_before_the_overage_arose_does_not_repay_it():
    began_ms, ended_ms = BOUNDARY_MS - 2 * HOUR_MS, BOUNDARY_MS - HOUR_MS
    over = grant(1, left=30, effective_at_ms=began_ms, expires_at_ms=ended_ms)
    store = Stored(members(over))

    store.apply([logged("k1", cost=40)])
    store.apply([logged("k2", cost=5, at_ms=BOUNDARY_MS + 1)])

    member = store.of[USERS[0]]
    assert (member.overage, [one.left for one in member.grants]) == (45, [30])
    assert {kind for _, _, _, kind in store.entries} == {"burn"}
