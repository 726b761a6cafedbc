"""A run of the usage log, folded in memory into the few rows that PostgreSQL is asked to change.

Nothing here touches a database. Everything is a function of the lines and of what PostgreSQL had
of their users, so a run that is read twice folds to the same rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from quota.values import MICRO, uuid7_time_ms
from quota.wire import mark_of
from service.usage_ids import uuid7_from
from service.usage_log import RESERVE
from worker.counts import PERIODS, count, count_windows, counted_in, instant_at, starts_at
from worker.holding import Holding
from worker.purse import ENTRY_COLUMNS, Purses

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from quota.burndown import Grant
    from quota.period import Calendar
    from quota.rules import AllowanceChanges
    from service.usage_log import Line
    from worker.counts import Windows
    from worker.holding import Hold

__all__ = [
    "COLUMNS",
    "ENTRY_COLUMNS",
    "KEY_SKEW_MS",
    "LATE_GRACE_MS",
    "PERIODS",
    "Batch",
    "Keyed",
    "Member",
    "fold",
    "keyed",
]

# A key made by our client carries its time; it is looked for so far around it (a clock may be off by as much).
KEY_SKEW_MS = 24 * 3600 * 1000
LATE_GRACE_MS = 3_600_000
COLUMNS = (
    "id",
    "user_id",
    "action",
    "amount",
    "credits_consumed",
    "metadata",
    "created_at",
    "format",
    "quality",
    "key",
    "line",
    "event_id",
    "event_type",
    "product_version",
    "session_id",
    "late",
    "arrived_at",
)


class Member(NamedTuple):
    """What PostgreSQL has of a user who is in the run."""

    calendar: Calendar
    overage: int
    overage_at_ms: int  # when it was last set: of grants that were over by then, none repays it
    grants: Sequence[Grant]
    holds: Mapping[str, Hold] = MappingProxyType({})  # open ones, in the order of their reserves
    allowances: AllowanceChanges = ()  # of the tier; nothing, if it never had one


@dataclass(slots=True)
class Keyed:
    """The lines of a run with their ids, and the keys that tell whether they were applied before."""

    ids: list[str | UUID] = field(default_factory=list)
    timed: list[int] = field(default_factory=list)  # heads whose key carries a time
    marked: list[tuple[int, UUID]] = field(
        default_factory=list
    )  # heads whose key does not, and its mark
    time_min_ms: int = 0
    time_max_ms: int = 0


@dataclass(slots=True)
class Batch:
    """The rows of one transaction, as columns for `unnest` or as records for COPY."""

    logs: list[tuple[Any, ...]] = field(default_factory=list)
    keys: list[tuple[UUID, UUID, Any, datetime]] = field(default_factory=list)
    usage: dict[tuple[UUID, str], list[Any]] = field(default_factory=dict)
    windows: Windows = field(default_factory=dict)
    entries: list[tuple[Any, ...]] = field(default_factory=list)
    grants_left: list[tuple[UUID, UUID, int]] = field(default_factory=list)
    # Of those that were set back or changed: left, amount, how often, since when, used beyond it, changed when.
    grants_renewed: list[tuple[Any, ...]] = field(default_factory=list)
    # Tiers' allowances without a row so far: user, id, amount, left, effective, made and renewed at, how often,
    # used beyond it, changed when.
    allowances: list[tuple[Any, ...]] = field(default_factory=list)
    overages: list[tuple[UUID, int, datetime]] = field(default_factory=list)  # and since when
    holds_made: list[Hold] = field(default_factory=list)
    holds_changed: list[Hold] = field(default_factory=list)  # ended, or paid by others
    ignored: list[int] = field(default_factory=list)  # ends of holds that are not open
    # When the lines were admitted, first and last in ms; nearly every row of `logs` is created then.
    span: tuple[int, int] | None = None
    elsewhen: list[tuple[Any, ...]] = field(default_factory=list)  # rows of `logs` that need not be


def keyed(lines: Sequence[Any]) -> Keyed:
    """Give each line its id, and sort its key to where a repeat of it would be found.

    The id is the key, when that is a UUIDv7; else it is made from user, key and instant, so that a
    line gets the same id whenever it is read and whatever is read with it.
    """
    found = Keyed()
    low, high = None, 0
    for number, (user_id, line, _, at_ms, _) in enumerate(lines):
        time_ms = uuid7_time_ms(line.key)
        if line.number:  # no key has a NUL
            mark = mark_of(user_id, f"{line.key}\0{line.number}")
            found.ids.append(uuid7_from(mark, at_ms if time_ms is None else time_ms))
            continue
        if line.code is not None and line.code.op != RESERVE:
            found.ids.append(line.key)  # no usage of its own: it has the key of its hold
            continue
        mark = mark_of(user_id, line.key) if time_ms is None else b""
        if time_ms is None:
            found.ids.append(uuid7_from(mark, at_ms))
        else:
            found.ids.append(line.key)
            found.timed.append(number)
            low = time_ms if low is None or time_ms < low else low
            high = max(high, time_ms)
        occurred_ms = line.occurred_at_ms
        created_ms = at_ms if occurred_ms is None else occurred_ms
        if time_ms is None or abs(time_ms - created_ms) > KEY_SKEW_MS:
            found.marked.append((number, UUID(bytes=mark or mark_of(user_id, line.key))))
    found.time_min_ms, found.time_max_ms = low or 0, high
    return found


def fold(
    lines: Sequence[Any],
    keys: Keyed,
    skipped: set[int],
    members: Mapping[UUID, Member],
    *,
    late_grace_ms: int = LATE_GRACE_MS,
) -> Batch:
    """The rows that *lines* come to; *skipped* are the numbers of those that were applied before."""
    batch = Batch()
    purses = Purses(batch, members)
    holding = Holding(batch, members, purses, _row)
    marks = dict(keys.marked)
    opened = purses.opened
    for number, (user_id, line, cost, at_ms, _) in enumerate(lines):
        if number in skipped:
            continue
        usage_id = keys.ids[number]
        if number in marks:
            batch.keys.append((user_id, marks[number], usage_id, _created_at(line, at_ms)))
        if line.code is None:
            _use(batch, members[user_id], user_id, line, usage_id, cost, at_ms, late_grace_ms)
            if cost:
                purse = opened.get(user_id) or purses.of(user_id, at_ms)
                purse.pay(line, usage_id, cost, at_ms)
        elif line.code.op == RESERVE:
            holding.reserve(user_id, line, usage_id, cost, at_ms)
        elif not holding.end(user_id, line, cost, at_ms):
            batch.ignored.append(number)
    holding.close(purses.close())
    if batch.logs:
        admitted = [line[3] for number, line in enumerate(lines) if number not in skipped]
        batch.span = min(admitted), max(admitted)
    return batch


def _use(
    batch: Batch,
    member: Member,
    user_id: UUID,
    line: Line,
    usage_id: Any,
    cost: int,
    at_ms: int,
    late_grace_ms: int,
) -> None:
    """Log and count a line that was used as it was admitted."""
    occurred_ms, late = line.occurred_at_ms, False
    if occurred_ms is None:
        created_at, arrived_at = instant_at(at_ms), None
        starts = starts_at(member.calendar, at_ms)
    else:
        created_at, arrived_at = instant_at(occurred_ms), instant_at(at_ms)
        starts, late = counted_in(member.calendar, occurred_ms, at_ms=at_ms, grace_ms=late_grace_ms)
    row = _row(
        usage_id, user_id, line, line.amount, cost, created_at, line.number, late, arrived_at
    )
    batch.logs.append(row)
    if arrived_at is not None:
        batch.elsewhen.append(row)
    count(batch.usage, (user_id, line.feature), line.amount, created_at, row[5], starts)
    if line.windows:
        count_windows(batch.windows, user_id, line.feature, line.windows, line.amount)


def _row(
    usage_id: Any,
    user_id: UUID,
    line: Line,
    amount: int,
    cost: int,
    created_at: datetime,
    number: int = 0,
    late: bool = False,
    arrived_at: datetime | None = None,
) -> tuple[Any, ...]:
    """A row of usage_logs, in the order of `COLUMNS`; a key that is the id is not kept twice."""
    metadata = bytes(line.metadata)
    return (
        usage_id,
        user_id,
        line.feature,
        amount,
        credits_text(cost),
        None if metadata == b"null" else metadata.decode(),
        created_at,
        line.format,
        line.quality,
        None if usage_id is line.key else line.key,
        number,
        line.event_id,
        line.event_type,
        line.product_version,
        line.session_id,
        late,
        arrived_at,
    )


def _created_at(line: Line, at_ms: int) -> datetime:
    return instant_at(at_ms if line.occurred_at_ms is None else line.occurred_at_ms)


@lru_cache(maxsize=65_536)
def credits_text(cost: int) -> Decimal:
    """Micro-credits as the credits of `usage_logs`; few costs are many records'."""
    return Decimal(cost) / MICRO
