"""A run of the usage log, folded in memory into the few rows that PostgreSQL is asked to change.

Nothing here touches a database. Everything is a function of the lines and of what PostgreSQL had
of their users, so a run that is read twice folds to the same rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from quota.account import Account
from quota.period import Calendar, window_at
from quota.values import MICRO, instant_of, uuid7_time_ms
from quota.wire import mark_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from quota.burndown import Grant
    from service.usage_log import Line

__all__ = [
    "COLUMNS",
    "ENTRY_COLUMNS",
    "KEY_SKEW_MS",
    "PERIODS",
    "Batch",
    "Keyed",
    "Member",
    "fold",
    "keyed",
]

# A key made by our client carries its time; it is looked for so far around it (a clock may be off by as much).
KEY_SKEW_MS = 24 * 3600 * 1000
PERIODS = ("hour", "day", "week", "month", "year", "cycle")
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
)
# Of credit_entries: who paid for what; no grant means overage.
ENTRY_COLUMNS = ("user_id", "grant_id", "usage_id", "kind", "amount_micro", "created_at")
_CALENDARS_MAX = 100_000  # users' calendars kept with the windows that ran last; cleared when full


class Member(NamedTuple):
    """What PostgreSQL has of a user who is in the run."""

    calendar: Calendar
    overage: int
    overage_at_ms: int  # when it last grew: of grants that were over by then, none repays it
    grants: Sequence[Grant]


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
    windows: dict[tuple[UUID, str, int], tuple[int, int]] = field(
        default_factory=dict
    )  # end in ms, units
    entries: list[tuple[Any, ...]] = field(default_factory=list)
    grants_left: list[tuple[UUID, UUID, int]] = field(default_factory=list)
    overages: list[tuple[UUID, int]] = field(default_factory=list)


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
            found.ids.append(_id_from(mark, at_ms if time_ms is None else time_ms))
            continue
        mark = mark_of(user_id, line.key) if time_ms is None else b""
        if time_ms is None:
            found.ids.append(_id_from(mark, at_ms))
        else:
            found.ids.append(line.key)
            found.timed.append(number)
            low = time_ms if low is None or time_ms < low else low
            high = max(high, time_ms)
        if time_ms is None or abs(time_ms - _created_ms(line, at_ms)) > KEY_SKEW_MS:
            found.marked.append((number, UUID(bytes=mark or mark_of(user_id, line.key))))
    found.time_min_ms, found.time_max_ms = low or 0, high
    return found


def fold(
    lines: Sequence[Any], keys: Keyed, skipped: set[int], members: Mapping[UUID, Member]
) -> Batch:
    """The rows that *lines* come to; *skipped* are the numbers of those that were applied before."""
    batch = Batch()
    accounts: dict[UUID, Account] = {}
    marks = dict(keys.marked)
    logs, usage = batch.logs, batch.usage
    for number, (user_id, line, cost, at_ms, _) in enumerate(lines):
        if number in skipped:
            continue
        usage_id, amount = keys.ids[number], line.amount
        created_at = instant_at(_created_ms(line, at_ms))
        metadata = bytes(line.metadata)
        metadata_text = None if metadata == b"null" else metadata.decode()
        logs.append(
            (
                usage_id,
                user_id,
                line.feature,
                amount,
                credits_text(cost),
                metadata_text,
                created_at,
                line.format,
                line.quality,
                None if usage_id is line.key else line.key,
                line.number,
                line.event_id,
                line.event_type,
                line.product_version,
                line.session_id,
            )
        )
        if number in marks:
            batch.keys.append((user_id, marks[number], usage_id, created_at))
        member = members[user_id]
        _count(
            usage,
            (user_id, line.feature),
            amount,
            created_at,
            metadata_text,
            _starts(member.calendar, at_ms),
        )
        if line.windows:
            _count_windows(batch.windows, user_id, line)
        if cost:
            account = accounts.get(user_id)
            if account is None:
                account = accounts[user_id] = Account(
                    member.grants, member.overage, at_ms=member.overage_at_ms
                )
            _charge(batch, account, user_id, usage_id, cost, at_ms)
    for user_id, account in accounts.items():
        _settle(batch, user_id, members[user_id], account)
    return batch


def _created_ms(line: Line, at_ms: int) -> int:
    return at_ms if line.occurred_at_ms is None else line.occurred_at_ms


def _id_from(mark: bytes, time_ms: int) -> UUID:
    """A UUIDv7 of *time_ms* whose other bits are those of *mark*."""
    digest = int.from_bytes(mark[:10])
    return UUID(int=time_ms << 80 | 7 << 76 | (digest & 0xFFF) << 64 | 2 << 62 | digest >> 18)


@lru_cache(maxsize=65_536)
def credits_text(cost: int) -> Decimal:
    """Micro-credits as the credits of `usage_logs`; few costs are many records'."""
    return Decimal(cost) / MICRO


@lru_cache(maxsize=65_536)
def instant_at(ms: int) -> datetime:
    """The instant; the lines of one entry share it."""
    return instant_of(ms)


_running: dict[Calendar, tuple[int, int, tuple[datetime, ...]]] = {}


def _starts(calendar: Calendar, at_ms: int) -> tuple[datetime, ...]:
    """The starts of the calendar's periods that run at *at_ms*: the same tuple while none of them ends."""
    running = _running.get(calendar)
    if running is None or not running[0] <= at_ms < running[1]:
        windows = [window_at(per, at_ms, calendar) for per in PERIODS]
        first = max(window.start_ms for window in windows)
        last = min(window.end_ms for window in windows if window.end_ms is not None)
        if len(_running) >= _CALENDARS_MAX:
            _running.clear()
        running = _running[calendar] = (
            first,
            last,
            tuple(instant_at(window.start_ms) for window in windows),
        )
    return running[2]


def _count(
    usage: dict[tuple[UUID, str], list[Any]],
    key: tuple[UUID, str],
    amount: int,
    at: datetime,
    metadata: str | None,
    starts: tuple[datetime, ...],
) -> None:
    """Add to the row of a user and feature: units, last use, metadata of it, starts, units by period."""
    row = usage.get(key)
    if row is None:
        usage[key] = [amount, at, metadata, starts, [amount] * len(PERIODS)]
        return
    row[0] += amount
    if at >= row[1]:
        row[1] = at
        row[2] = metadata if metadata is not None else row[2]
    if row[3] is starts:
        row[4] = [units + amount for units in row[4]]
    else:  # a period ended in the middle of the run: the later one counts on, alone
        merged = [
            (start, units + amount)
            if start == old
            else (max(start, old), amount if start > old else units)
            for start, old, units in zip(starts, row[3], row[4], strict=True)
        ]
        row[3], row[4] = tuple(start for start, _ in merged), [units for _, units in merged]


def _count_windows(
    windows: dict[tuple[UUID, str, int], tuple[int, int]], user_id: UUID, line: Line
) -> None:
    """Add to each window that the line counts in; a later one starts over, an earlier one is past."""
    for seconds, end_ms in line.windows or ():
        key = (user_id, line.feature, seconds)
        running_end_ms, units = windows.get(key, (end_ms, 0))
        if end_ms > running_end_ms:
            windows[key] = (end_ms, line.amount)
        elif end_ms == running_end_ms:
            windows[key] = (end_ms, units + line.amount)


def _charge(
    batch: Batch, account: Account, user_id: UUID, usage_id: Any, cost: int, at_ms: int
) -> None:
    at = instant_at(at_ms)
    for grant_id, paid in account.repay(at_ms=at_ms):
        batch.entries.append((user_id, grant_id, None, "repaid", paid, at))
    payments, overage = account.charge(cost, at_ms=at_ms)
    for grant_id, paid in payments:
        batch.entries.append((user_id, grant_id, usage_id, "burn", paid, at))
    if overage:
        batch.entries.append((user_id, None, usage_id, "burn", overage, at))


def _settle(batch: Batch, user_id: UUID, member: Member, account: Account) -> None:
    if account.overage != member.overage:
        batch.overages.append((user_id, account.overage))
    batch.grants_left += [
        (user_id, grant.id, left)
        for grant in member.grants
        if (left := account.left_of(grant.id)) != grant.left
    ]
