from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quota.allowance import allowance_id
from quota.burndown import Grant
from quota.period import Calendar, window_at
from quota.rules import Allowance, AllowanceChanges
from quota.values import MICRO, instant_ms, instant_of, new_key, uuid7_time_ms
from quota.wire import mark_of
from service.opened import add_opened
from service.usage_log import Code, Line
from worker.batch import COLUMNS, KEY_SKEW_MS, PERIODS, Batch, Member, fold, keyed
from worker.holding import OPEN, Hold

BOUNDARY_MS = instant_ms(datetime(2025, 3, 31, 22, tzinfo=UTC))  # April begins in Berlin
HOUR_MS = 3_600_000
BERLIN, UTC_CALENDAR = Calendar("Europe/Berlin"), Calendar("UTC", BOUNDARY_MS - 5, 1)
USERS = (UUID(int=1), UUID(int=2))
NUMBER = {name: place for place, name in enumerate(COLUMNS)}
WINDOW_S = 300
# The second overlaps with the first, which plain SQL has opened, and the third with the second only.
WINDOW_ENDS_MS = (300_000, 400_000, 650_000, 951_000)

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
    windows=st.none() | st.tuples(st.tuples(st.just(WINDOW_S), st.sampled_from(WINDOW_ENDS_MS))),
)


def in_order(run: list[Logged]) -> list[Logged]:
    """As the log has them: by time, each under a key of its own, a window after the other."""
    run = sorted(run, key=lambda line: line[3])
    windows = iter(sorted(line.windows for _, line, *_ in run if line.windows))
    return [
        (
            user,
            msgspec.structs.replace(
                line,
                key=f"{line.key[:-4]}{number:04x}",
                windows=[*next(windows)] if line.windows else None,
            ),
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
    used: dict[Any, tuple[int, datetime]] = field(default_factory=dict)
    metadata: dict[Any, str | None] = field(default_factory=dict)
    counters: dict[Any, list[Any]] = field(default_factory=dict)
    windows: dict[Any, tuple[int, int]] = field(default_factory=dict)
    entries: list[tuple[Any, ...]] = field(default_factory=list)
    holds: dict[tuple[UUID, str], Hold] = field(default_factory=dict)
    ignored: int = 0

    def apply(self, run: list[Logged]) -> None:
        batch = folded(run, self._members(run))
        self.logs += batch.logs
        self.keys += batch.keys
        self.entries += batch.entries
        self.ignored += len(batch.ignored)
        for key, row in batch.usage.items():
            self._add_used(key, row)
            self._add_counters(key, row)
        in_turn = sorted(batch.windows.items(), key=lambda one: one[0][3])
        for (user, feature, seconds, end_ms), units in in_turn:
            window = (user, feature, seconds)
            self.windows[window] = add_opened(
                self.windows.get(window), end_ms, units, seconds=seconds
            )
        for hold in (*batch.holds_made, *batch.holds_changed):
            self.holds[hold.user_id, hold.key] = hold
        for user in self.of:
            self._settle(user, batch)

    def _members(self, run: list[Logged]) -> dict[UUID, Member]:
        """As `worker.members` reads them: grants that may pay, and all where a hold ends."""
        enders = {user for user, line, *_ in run if line.code and line.code.op != "h"}
        return {
            user: member._replace(
                grants=[one for one in member.grants if one.left or one.every or user in enders],
                holds={
                    key: hold
                    for (of, key), hold in self.holds.items()
                    if of == user and hold.status == OPEN
                },
            )
            for user, member in self.of.items()
        }

    def _add_used(self, key: Any, row: list[Any]) -> None:
        units, last, metadata, *_ = row
        if last is None:
            return
        before, last_before = self.used.get(key, (0, last))
        if last >= last_before:
            self.metadata[key] = metadata or self.metadata.get(key)
        self.used[key] = (before + units, max(last, last_before))

    def _add_counters(self, key: Any, row: list[Any]) -> None:
        starts, counts, lifetime = row[3], row[4], row[0] + row[5]
        if key not in self.counters:
            self.counters[key] = [lifetime, list(starts), list(counts)]
            return
        stored = self.counters[key]
        stored[0] += lifetime
        for place, (start, count) in enumerate(zip(starts, counts, strict=True)):
            if start > stored[1][place]:
                stored[1][place], stored[2][place] = start, count
            elif start == stored[1][place]:
                stored[2][place] += count

    def _settle(self, user: UUID, batch: Batch) -> None:
        member = self.of[user]
        grants = {one.id: one for one in member.grants}
        for of, id_, amount, left, effective_at, created_at, *rest in batch.allowances:
            renewed_at, every, overused, changed_at = rest
            if of == user:
                assert id_ not in grants
                grants[id_] = Grant(
                    id=id_,
                    amount=amount,
                    left=left,
                    every=every,
                    effective_at_ms=instant_ms(effective_at),
                    created_at_ms=instant_ms(created_at),
                    renewed_at_ms=instant_ms(renewed_at),
                    overused=overused,
                    changed_at_ms=changed_at and instant_ms(changed_at),
                )
        for of, id_, left in batch.grants_left:
            if of == user:
                grants[id_] = replace(grants[id_], left=left)
        for of, id_, left, amount, every, since, overused, changed_at in batch.grants_renewed:
            if of == user:
                changes = {"left": left, "amount": amount, "renewed_at_ms": instant_ms(since)}
                changes["changed_at_ms"] = changed_at and instant_ms(changed_at)
                grants[id_] = replace(grants[id_], every=every, overused=overused, **changes)
        for of, overage, at in batch.overages:
            if of == user:
                member = member._replace(overage=overage, overage_at_ms=instant_ms(at))
        self.of[user] = member._replace(grants=list(grants.values()))

    def rows(self) -> dict[str, Any]:
        """Everything but the metadata of the last use, which late records may leave in another order."""
        return {
            "logs": self.logs,
            "keys": self.keys,
            "used": self.used,
            "counters": self.counters,
            "windows": self.windows,
            "entries": Counter(self.entries),
            "holds": self.holds,
            "ignored": self.ignored,
            "users": {
                user: (one.overage, one.overage_at_ms, sorted(one.grants, key=lambda one: one.id))
                for user, one in self.of.items()
            },
        }


# No allowance, always the same, some whose amount changes once or more often, one that is no more, one that comes.
ALLOWANCES: list[AllowanceChanges] = [
    (),
    ((0, Allowance(30, "day")),),
    ((0, Allowance(20, "day")), (BOUNDARY_MS, Allowance(30, "week"))),
    ((0, Allowance(30, "day")), (BOUNDARY_MS, None)),
    ((0, None), (BOUNDARY_MS, Allowance(30, "week"))),
    (
        (0, Allowance(20, "week")),
        (BOUNDARY_MS - 2 * HOUR_MS, Allowance(60, "week")),
        (BOUNDARY_MS, Allowance(20, "week")),
        (BOUNDARY_MS + HOUR_MS, Allowance(50, "day")),
    ),
]


@st.composite
def runs_with_holds(draw: st.DrawFn) -> list[Logged]:
    """Records of all kinds in the order of the log, at an instant of its own each.

    Holds end once, again, or without having begun; they expire between the line before and this one.
    """
    steps = draw(st.lists(st.tuples(st.integers(1, 7), st.sampled_from("plchrx")), max_size=14))
    at_ms = BOUNDARY_MS - 6 * HOUR_MS
    run: list[Logged] = []
    reserved: list[tuple[UUID, str, str, int]] = []
    place = draw(st.integers(0, 3))
    for number, (halves, op) in enumerate(steps):
        before_ms, at_ms = at_ms, at_ms + halves * HOUR_MS // 4 + number
        user, feature = draw(st.sampled_from(USERS)), draw(st.sampled_from(["tokens", "calls"]))
        key = draw(st.sampled_from([f"key-{number}", new_key(now_ms=at_ms)]))
        amount, price = draw(st.integers(1, 9)), draw(st.integers(0, 8))
        place += draw(st.sampled_from([0, 0, 0, 1]))
        fields: dict[str, Any] = {"windows": [(WINDOW_S, WINDOW_ENDS_MS[min(place, 3)])]}
        if op == "l":
            fields["occurred_at_ms"] = at_ms + draw(st.integers(-12, 1)) * HOUR_MS // 4
        if op == "h":
            fields["code"] = Code("h", at_ms + HOUR_MS, f"{price}/1")
            reserved.append((user, feature, key, price))
        if op in "crx":
            one = draw(st.sampled_from(reserved)) if reserved else (user, feature, "unknown", price)
            user, feature, key, price = one
            amount = draw(st.integers(0, 12)) if op == "c" else 0
            fields["code"] = Code(op, draw(st.sampled_from([before_ms, at_ms])) if op == "x" else 0)
        cost = price * amount
        run.append(
            logged(key, user=user, at_ms=at_ms, cost=cost, feature=feature, amount=amount, **fields)
        )
    return run


def with_allowance(
    of: dict[UUID, Member], allowances: AllowanceChanges, *, stored: bool
) -> dict[UUID, Member]:
    first = allowances[0][1] if stored and allowances else None
    return {
        user: one._replace(
            allowances=allowances,
            grants=[*one.grants, *([_stored_allowance(user, first)] if first else [])],
        )
        for user, one in of.items()
    }


def _stored_allowance(user: UUID, allowance: Allowance) -> Grant:
    return Grant(
        id=allowance_id(user),
        amount=allowance.amount,
        left=allowance.amount,
        every=allowance.every,
        effective_at_ms=0,
        created_at_ms=0,
        renewed_at_ms=BOUNDARY_MS - 48 * HOUR_MS,
    )


def _last_ms(run: list[Logged]) -> int:
    return run[-1][3] if run else 0


def _know(store: Stored, allowances: Sequence[tuple[int, Allowance | None]]) -> None:
    """Let the worker know of these changes of the tier's allowance, and of no others."""
    known = tuple(allowances) if any(allowance for _, allowance in allowances) else ()
    store.of = {user: one._replace(allowances=known) for user, one in store.of.items()}


@settings(max_examples=400)
@given(
    run=st.one_of(runs, runs_with_holds()),
    purse=purses,
    calendar=calendars,
    allowances=st.sampled_from(ALLOWANCES),
    stored=st.booleans(),
    data=st.data(),
)
def test_two_folds_of_the_halves_come_to_one_fold_of_the_whole(
    run: list[Logged],
    purse: list[Grant],
    calendar: Calendar,
    allowances: AllowanceChanges,
    stored: bool,
    data: st.DataObject,
):
    cut = data.draw(st.integers(0, len(run)))
    of = with_allowance(members(*purse, calendar=calendar), allowances, stored=stored)
    opened = data.draw(
        st.sampled_from([{}, {(USERS[0], "tokens", WINDOW_S): (WINDOW_ENDS_MS[0], 5)}])
    )
    whole, halves = Stored(dict(of), windows={**opened}), Stored(dict(of), windows={**opened})

    whole.apply(run)
    if data.draw(st.booleans()):  # the rules that change it are applied between the two
        _know(halves, [one for one in allowances if one[0] <= _last_ms(run[:cut])])
    halves.apply(run[:cut])
    _know(halves, allowances)
    halves.apply(run[cut:])

    assert halves.rows() == whole.rows()
    if all(line.code is None and line.occurred_at_ms is None for _, line, *_ in run):
        assert halves.metadata == whole.metadata


@settings(max_examples=400)
@given(
    run=runs_with_holds(),
    purse=purses,
    allowances=st.sampled_from(ALLOWANCES),
    stored=st.booleans(),
)
def test_nothing_is_lost_or_negative_whatever_becomes_of_holds(
    run: list[Logged], purse: list[Grant], allowances: AllowanceChanges, stored: bool
):
    store = Stored(with_allowance(members(*purse), allowances, stored=stored))
    was = {user: sum(one.left for one in of.grants) for user, of in store.of.items()}

    for line in run:
        store.apply([line])
        assert all(units >= 0 for _, units in store.windows.values())
        assert all(min(row[0], *row[2]) >= 0 for row in store.counters.values())

    for user in USERS:
        by_kind: Counter[str] = Counter()
        for of_user, _, _, _, kind, micro, _ in store.entries:
            by_kind[kind] += micro if of_user == user else 0
            assert micro > 0
        member, own = store.of[user], [one for key, one in store.holds.items() if key[0] == user]
        left = [one.left for one in member.grants]
        held = sum(paid.amount for one in own if one.status == OPEN for paid in one.payments)
        assert min([member.overage, *left]) >= 0
        given = was[user] + by_kind["granted"] + by_kind["renewed"] + by_kind["forgiven"]
        assert given == by_kind["burn"] + sum(left) + held + by_kind["lapsed"] - member.overage
    assert len({entry[:3] for entry in store.entries}) == len(store.entries)


@settings(max_examples=300)
@given(run=runs_with_holds())
def test_a_hold_is_counted_from_its_reserve_and_logged_by_its_commit(run: list[Logged]):
    store = Stored(members())

    store.apply(run)

    ended = Counter(one.status for one in store.holds.values())
    ends = [line for _, line, *_ in run if line.code is not None and line.code.op != "h"]
    assert store.ignored == len(ends) - sum(ended.values()) + ended[OPEN]
    for (user, key), hold in store.holds.items():
        rows = [row for row in store.logs if row[1] == user and key in (row[0], row[NUMBER["key"]])]
        assert sum(row[NUMBER["amount"]] for row in rows) == (hold.committed_amount or 0)
        assert sum(row[NUMBER["credits_consumed"]] for row in rows) * MICRO == (
            hold.committed_micro or 0
        )
        assert [row[NUMBER["line"]] for row in rows] == list(range(len(rows)))
        if rows:
            assert rows[0][0] == hold.id
            assert rows[0][NUMBER["created_at"]] == instant_of(hold.reserved_ms)
        if rows[1:]:
            assert hold.ended_ms is not None
            assert rows[1][NUMBER["created_at"]] == instant_of(hold.ended_ms)
    for user, feature in store.counters:
        used = sum(row[NUMBER["amount"]] for row in store.logs if row[1:3] == (user, feature))
        held = sum(
            one.amount
            for one in store.holds.values()
            if (one.user_id, one.feature, one.status) == (user, feature, OPEN)
        )
        assert store.counters[user, feature][0] == used + held
        assert store.used.get((user, feature), (0,))[0] == used


@given(run=runs, purse=purses)
def test_every_cost_is_paid_by_a_grant_or_is_overage(run: list[Logged], purse: list[Grant]):
    batch = folded(run, members(*purse))

    burnt: Counter[Any] = Counter()
    for _, usage_id, _, _, kind, micro, _ in batch.entries:
        if kind == "burn":
            burnt[usage_id] += micro
    ids = keyed(run).ids
    assert burnt == Counter({ids[n]: cost for n, (_, _, cost, _, _) in enumerate(run) if cost})
    paid = sum(entry[5] for entry in batch.entries if entry[3] is not None)
    left = {(user, one.id): one.left for user in USERS for one in purse}
    gone = sum(left[user, grant_id] - micro for user, grant_id, micro in batch.grants_left)
    assert gone == paid
    assert (
        sum(micro for _, micro, _ in batch.overages) == sum(cost for _, _, cost, _, _ in run) - paid
    )


@given(run=runs)
def test_units_are_counted_where_a_reader_of_the_log_would_count_them(run: list[Logged]):
    batch = folded(run, members())

    for (user, feature), (units, last, _, starts, counts, held) in batch.usage.items():
        own = [(line, at) for of, line, _, at, _ in run if (of, line.feature) == (user, feature)]
        assert (units, held) == (sum(line.amount for line, _ in own), 0)
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
        "late": False,
        "arrived_at": instant_of(BOUNDARY_MS),
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


@pytest.mark.parametrize(
    ("at_ms", "occurred_ms", "counted", "late"),
    [
        # Within the grace: day and month of yesterday's last instant, and the week and year that run on.
        (BOUNDARY_MS, BOUNDARY_MS - 1, {"hour", "day", "month"}, False),
        (BOUNDARY_MS + HOUR_MS - 1, BOUNDARY_MS - 1, {"hour", "day", "month"}, False),
        # The grace is over, and the hour between is not the one directly before.
        (BOUNDARY_MS + HOUR_MS, BOUNDARY_MS - 1, set(), True),
        # Two hours ago, one of them in this hour's past: the hour is too late, the day is not.
        (BOUNDARY_MS, BOUNDARY_MS - HOUR_MS - 1, {"day", "month"}, True),
        (BOUNDARY_MS, BOUNDARY_MS - 40 * 24 * HOUR_MS, set(), True),
        (BOUNDARY_MS, BOUNDARY_MS, set(), False),
        (BOUNDARY_MS, BOUNDARY_MS + 300_000, set(), False),  # a clock that is ahead
        (BOUNDARY_MS - 1, BOUNDARY_MS + 1, set(), False),  # ahead over the end of the period
    ],
)
def test_a_late_record_counts_where_it_occurred_within_the_grace_else_where_it_was_admitted(
    at_ms: int, occurred_ms: int, counted: set[str], late: bool
):
    record = logged("k", at_ms=at_ms, occurred_at_ms=occurred_ms)

    batch = folded([record], members())

    [(_, last, _, starts, _, _)] = batch.usage.values()
    [row] = batch.logs
    assert last == row[NUMBER["created_at"]] == instant_of(occurred_ms)
    assert row[NUMBER["arrived_at"]] == instant_of(at_ms)
    assert row[NUMBER["late"]] is late
    for per, start in zip(PERIODS, starts, strict=True):
        before = instant_of(window_at(per, occurred_ms, BERLIN).start_ms)
        running = instant_of(window_at(per, at_ms, BERLIN).start_ms)
        assert start == (before if per in counted else running)


def test_the_grace_is_an_argument():
    record = logged("k", at_ms=BOUNDARY_MS, occurred_at_ms=BOUNDARY_MS - 1)

    batch = fold([record], keyed([record]), set(), members(), late_grace_ms=0)

    assert batch.logs[0][NUMBER["late"]] is True


def test_the_metadata_kept_is_that_of_the_last_use_that_had_some():
    some, none = msgspec.Raw(b'{"a":1}'), msgspec.Raw(b"null")
    run = [
        logged("k1", at_ms=BOUNDARY_MS, metadata=msgspec.Raw(b'{"a":0}')),
        logged("k2", at_ms=BOUNDARY_MS + 1, metadata=some),
        logged("k3", at_ms=BOUNDARY_MS + 2, metadata=none),
    ]

    [(_, _, metadata, *_)] = folded(run, members()).usage.values()

    assert metadata == '{"a":1}'


def test_a_grant_that_was_over_before_the_overage_arose_does_not_repay_it():
    began_ms, ended_ms = BOUNDARY_MS - 2 * HOUR_MS, BOUNDARY_MS - HOUR_MS
    over = grant(1, left=30, effective_at_ms=began_ms, expires_at_ms=ended_ms)
    store = Stored(members(over))

    store.apply([logged("k1", cost=40)])
    store.apply([logged("k2", cost=5, at_ms=BOUNDARY_MS + 1)])

    member = store.of[USERS[0]]
    assert (member.overage, [one.left for one in member.grants]) == (45, [30])
    assert {entry[4] for entry in store.entries} == {"burn"}
