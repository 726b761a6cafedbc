"""The rows of a batch, written in the transaction of the run: COPY, and one `unnest` statement a table."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from quota.account import payment_rows
from quota.values import instant_of
from service.database import statement
from worker.batch import COLUMNS
from worker.counts import PERIODS
from worker.purse import ENTRY_COLUMNS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime
    from uuid import UUID

    import asyncpg

    from worker.batch import Batch
    from worker.counts import Windows
    from worker.holding import Hold

__all__ = ["columns", "write"]

_ID, _USER_ID, _CREATED_AT = (COLUMNS.index(name) for name in ("id", "user_id", "created_at"))
_NEAR = timedelta(
    minutes=1
)  # a job reads so much more of the log sooner than it finds a row by name
HOLD_COLUMNS = (
    "user_id",
    "key",
    "id",
    "feature",
    "amount",
    "cost_micro",
    "price",
    "record",
    "payments",
    "windows",
    "reserved_at",
    "expires_at",
    "status",
    "committed_amount",
    "committed_micro",
    "ended_at",
)


async def write(connection: asyncpg.Connection[Any], batch: Batch) -> None:
    """Write the rows of *batch*."""
    if batch.logs:
        await connection.copy_records_to_table("usage_logs", records=batch.logs, columns=COLUMNS)
        await _note_run(connection, batch)
    await _write_usage(connection, batch)
    await _write_credits(connection, batch)
    await _write_holds(connection, batch)
    if batch.keys:
        await connection.execute(statement("worker", "add_keys"), *columns(batch.keys))


def columns(rows: Sequence[tuple[Any, ...]]) -> list[list[Any]]:
    """Rows as columns, for `unnest`."""
    return [list(column) for column in zip(*rows, strict=True)]


async def _note_run(connection: asyncpg.Connection[Any], batch: Batch) -> None:
    """Leave word of these rows for the job that folds them into days and months (`service.rollups`).

    One row, whatever the batch: it says between which instants to look. What was created far from them
    (late, backdated, held for long) is named, so that it does not make the job read days.
    """
    assert batch.span is not None, "there are rows"
    first, last = (instant_of(ms) for ms in batch.span)
    near = [row[_CREATED_AT] for row in batch.elsewhen if _is_near(row[_CREATED_AT], first, last)]
    first, last = min([first, *near]), max([last, *near])
    far = [
        (row[_USER_ID], row[_ID], row[_CREATED_AT])
        for row in batch.elsewhen
        if not first <= row[_CREATED_AT] <= last
    ]
    named = columns(far) if far else [[], [], []]
    await connection.execute(statement("worker", "note_run"), len(batch.logs), first, last, *named)


def _is_near(at: datetime, first: datetime, last: datetime) -> bool:
    return first - _NEAR <= at <= last + _NEAR


async def _write_usage(connection: asyncpg.Connection[Any], batch: Batch) -> None:
    if not batch.usage:
        return
    used = [
        (user_id, feature, row[0], row[1], row[2])
        for (user_id, feature), row in batch.usage.items()
        if row[1] is not None  # else there are only holds
    ]
    if used:
        await connection.execute(statement("worker", "add_feature_usage"), *columns(used))
    users = [user_id for user_id, _ in batch.usage]
    features = [feature for _, feature in batch.usage]
    rows = batch.usage.values()
    units = [row[0] + row[5] for row in rows]
    calendars: dict[Any, int] = {}
    places = [calendars.setdefault(row[3], len(calendars) + 1) for row in rows]
    # Seldom a period ends in the middle of a run; else each count is the units, which are sent once.
    whole = all(row[4] == [row[0] + row[5]] * len(PERIODS) for row in rows)
    parts = [None if whole else [row[4][place] for row in rows] for place in range(len(PERIODS))]
    starts = columns(list(calendars))
    await connection.execute(
        statement("worker", "add_counters"), users, features, units, places, *parts, *starts
    )
    for windows in _one_by_one(batch.windows):
        await connection.execute(statement("worker", "add_windows"), *columns(windows))


def _one_by_one(windows: Windows) -> Iterator[list[tuple[Any, ...]]]:
    """The rows of windows, none with two of the same user, feature and seconds: first goes what ends first."""
    waiting = sorted(windows.items(), key=lambda window: window[0][3])
    while waiting:
        firsts: dict[tuple[UUID, str, int], tuple[Any, ...]] = {}
        later = []
        for window in waiting:
            (user_id, feature, seconds, end_ms), units = window
            if (user_id, feature, seconds) in firsts:
                later.append(window)
            else:
                row = (user_id, feature, seconds, instant_of(end_ms), units)
                firsts[user_id, feature, seconds] = row
        yield [*firsts.values()]
        waiting = later


async def _write_credits(connection: asyncpg.Connection[Any], batch: Batch) -> None:
    if batch.entries:
        await connection.copy_records_to_table(
            "credit_entries", records=batch.entries, columns=ENTRY_COLUMNS
        )
    for name, rows in (
        ("add_allowances", batch.allowances),
        ("set_grants_left", batch.grants_left),
        ("set_grants_renewed", batch.grants_renewed),
        ("set_overages", batch.overages),
    ):
        if rows:
            await connection.execute(statement("worker", name), *columns(rows))


async def _write_holds(connection: asyncpg.Connection[Any], batch: Batch) -> None:
    if batch.holds_made:
        await connection.copy_records_to_table(
            "holds", records=[_hold_row(hold) for hold in batch.holds_made], columns=HOLD_COLUMNS
        )
    if batch.holds_changed:
        rows = [(hold.user_id, hold.key, *_changes(hold)) for hold in batch.holds_changed]
        await connection.execute(statement("worker", "set_holds"), *columns(rows))


def _hold_row(hold: Hold) -> tuple[Any, ...]:
    payments, *ended = _changes(hold)
    as_logged = msgspec.structs.replace(hold.line, windows=None, code=None)
    return (
        hold.user_id,
        hold.key,
        hold.id,
        hold.feature,
        hold.amount,
        hold.cost,
        hold.price,
        msgspec.json.encode(as_logged).decode(),
        payments,
        json.dumps(hold.windows),
        instant_of(hold.reserved_ms),
        instant_of(hold.expires_ms),
        *ended,
    )


def _changes(hold: Hold) -> tuple[Any, ...]:
    """What of a hold changes: payments, status, units and micro-credits committed, end."""
    ended_at = None if hold.ended_ms is None else instant_of(hold.ended_ms)
    payments = json.dumps(payment_rows(hold.payments))
    return payments, hold.status, hold.committed_amount, hold.committed_micro, ended_at
