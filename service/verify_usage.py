"""What users used, counted anew from the log of usage, its refunds, open holds, and what legacy rows had.

A counter is compared for the period that its row says: of those before, the row says nothing.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from quota.period import Calendar, window_at
from quota.values import instant_ms, instant_of
from service.database import statement
from service.opened import has_units_of
from service.recount import PERIODS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

    import asyncpg

    from quota.rules import Rules
    from service.figures import Figures

__all__ = ["STATEMENT_S_MAX", "Uses", "compare_usage", "uses_of"]

STATEMENT_S_MAX = 3_600.0  # of one user's whole log, if it has to be
_AHEAD_MS = 300_000  # a period that begins later than this has not begun by anybody's clock
_YEARS = range(1970, 9000)  # of the instants that were ever admitted

Key = tuple["UUID", str]  # a user and a feature


@dataclass(slots=True)
class Uses:
    """What users used: rows of `verify_uses`, of `verify_legacy`, and of open holds."""

    logged: dict[Key, Any] = field(default_factory=dict)
    legacy: dict[Key, Any] = field(default_factory=dict)
    held: dict[Key, list[Any]] = field(default_factory=lambda: defaultdict(list))

    def used(self, key: Key) -> int:
        """Units that were used, ever."""
        rows = [found[key] for found in (self.logged, self.legacy) if key in found]
        return sum(row["units"] for row in rows)

    def units(self, key: Key) -> int:
        """Units of a lifetime: used or held."""
        held: int = sum(row["amount"] for row in self.held.get(key, ()))
        return self.used(key) + held

    def last_ms(self, key: Key) -> int | None:
        """When the feature was used or reserved last."""
        found = [instant_ms(row["reserved_at"]) for row in self.held.get(key, ())]
        if key in self.logged:
            found.append(instant_ms(self.logged[key]["last_at"]))
        return max(found, default=None)


class _Bounds(NamedTuple):
    """A window, with the start of the one before and the end of the one after; in ms."""

    before_ms: int
    start_ms: int
    end_ms: int
    next_end_ms: int


@dataclass(slots=True)
class _Counter:
    """A row of `usage_counters`, or none where there should be one; and the periods to compare it for."""

    key: Key
    calendar: Calendar
    row: Any
    last_ms: int | None
    bounds: dict[str, _Bounds] = field(default_factory=dict)
    used: dict[str, int] = field(default_factory=dict)


class _Ask(NamedTuple):
    key: Key
    bounds: _Bounds


async def uses_of(connection: asyncpg.Connection[Any], user_ids: Sequence[UUID]) -> Uses:
    """What these users used, ever."""
    uses = Uses()
    for row in await _fetch(connection, "verify_uses", user_ids):
        uses.logged[row["user_id"], row["feature"]] = row
    for row in await _fetch(connection, "verify_legacy", user_ids):
        uses.legacy[row["user_id"], row["feature"]] = row
    for row in await _fetch(connection, "load_holds", user_ids):
        uses.held[row["user_id"], row["feature"]].append(row)
    return uses


async def compare_usage(
    connection: asyncpg.Connection[Any],
    users: Mapping[UUID, Any],
    uses: Uses,
    rules: Rules | None,
    figures: Figures,
    *,
    at_ms: int,
    grace_ms: int,
) -> None:
    """Compare `feature_usage`, `usage_counters` and `usage_windows` of *users*, rows of `verify_users`."""
    await _compare_totals(connection, users, uses, figures)
    await _compare_counters(connection, users, uses, figures, at_ms=at_ms, grace_ms=grace_ms)
    await _compare_windows(connection, users, uses, rules, figures, at_ms=at_ms, grace_ms=grace_ms)


async def _compare_totals(
    connection: asyncpg.Connection[Any], users: Mapping[UUID, Any], uses: Uses, figures: Figures
) -> None:
    rows = await _fetch(connection, "verify_feature_usage", list(users))
    stored = {(row["user_id"], row["feature"]): row for row in rows}
    for key in {**stored, **uses.logged, **uses.legacy}:
        row: Any = stored.get(key)
        units = uses.used(key)
        known = [found[key] for found in (uses.logged, uses.legacy) if key in found] or [row]
        count = None if row is None else row["usage_count"]
        wrong = figures.compare(key[0], "feature_usage.usage_count", key[1], count, units)
        last_used = max(one["last_used"] for one in known)
        if row is not None and row["last_used"] < last_used:
            wrong = figures.compare(
                key[0], "feature_usage.last_used", key[1], row["last_used"], last_used
            )
        if wrong:
            figures.mend_with("usage", (*key, units, last_used))


async def _compare_counters(
    connection: asyncpg.Connection[Any],
    users: Mapping[UUID, Any],
    uses: Uses,
    figures: Figures,
    *,
    at_ms: int,
    grace_ms: int,
) -> None:
    rows = await _fetch(connection, "load_counters", list(users))
    stored = {(row["user_id"], row["feature"]): row for row in rows}
    counters = []
    for key in {**stored, **uses.logged, **uses.legacy, **uses.held}:
        counter = _Counter(key, _calendar(users[key[0]]), stored.get(key), uses.last_ms(key))
        counter.bounds = {per: _bounds_to_compare(counter, per, at_ms=at_ms) for per in PERIODS}
        counters.append(counter)
    await _count(connection, counters, uses, grace_ms=grace_ms)
    for counter in counters:
        _compare_counter(counter, uses.units(counter.key), figures)


def _bounds_to_compare(counter: _Counter, per: str, *, at_ms: int) -> _Bounds:
    """The period that the row says, if there is one that begins then; else that of the last use."""
    last_ms = at_ms if counter.last_ms is None else counter.last_ms
    start = counter.row[f"{per}_start"] if counter.row is not None else None
    if start is not None and start.year in _YEARS:
        bounds = _bounds(per, instant_ms(start), _calendar_of(per, counter.calendar))
        begun = bounds.start_ms <= max(at_ms + _AHEAD_MS, last_ms)
        if begun and instant_of(bounds.start_ms) == start:
            return bounds
    return _bounds(per, last_ms, _calendar_of(per, counter.calendar))


async def _count(
    connection: asyncpg.Connection[Any], counters: Sequence[_Counter], uses: Uses, *, grace_ms: int
) -> None:
    """Count what each counter should say; one whose use went on in a later period has missed it."""
    asks = [
        (counter, per, _Ask(counter.key, bounds))
        for counter in counters
        for per, bounds in counter.bounds.items()
    ]
    while asks:
        counted = await _counted(connection, [ask for *_, ask in asks], uses, grace_ms=grace_ms)
        missed = []
        for (counter, per, ask), (units, later) in zip(asks, counted, strict=True):
            counter.used[per] = units
            if later and counter.last_ms is not None:
                bounds = _bounds(per, counter.last_ms, _calendar_of(per, counter.calendar))
                if bounds != ask.bounds:
                    counter.bounds[per] = bounds
                    missed.append((counter, per, _Ask(counter.key, bounds)))
        asks = missed


def _compare_counter(counter: _Counter, lifetime: int, figures: Figures) -> None:
    (user_id, feature), row = counter.key, counter.row
    wrong = False
    if row is None:
        wrong = figures.compare(user_id, "usage_counters", feature, None, lifetime)
    else:
        for per, bounds in counter.bounds.items():
            start, expected = row[f"{per}_start"], instant_of(bounds.start_ms)
            wrong |= figures.compare(
                user_id, f"usage_counters.{per}_start", feature, start, expected
            )
            used = row[f"{per}_used"]
            wrong |= figures.compare(
                user_id, f"usage_counters.{per}_used", feature, used, counter.used[per]
            )
        used = row["lifetime_used"]
        wrong |= figures.compare(user_id, "usage_counters.lifetime_used", feature, used, lifetime)
    if wrong:
        periods = [
            value
            for per in PERIODS
            for value in (instant_of(counter.bounds[per].start_ms), counter.used[per])
        ]
        figures.mend_with("counters", (user_id, feature, *periods, lifetime))


async def _compare_windows(
    connection: asyncpg.Connection[Any],
    users: Mapping[UUID, Any],
    uses: Uses,
    rules: Rules | None,
    figures: Figures,
    *,
    at_ms: int,
    grace_ms: int,
) -> None:
    """Compare the windows that were opened by use and run still.

    The log does not say whether a record counted in one: while the user was on a tier without the limit,
    it did not. So one that was limited all the time has to have all; of the others, none has more. One that is over
    may have: Redis had opened another, heard late that they were one (`service.opened`), and counted in it.
    """
    found = await _fetch(connection, "load_windows", list(users))
    rows = [row for row in found if row["end_ms"] > at_ms]
    asks = []
    for row in rows:
        start_ms = row["end_ms"] - row["seconds"] * 1000
        # Whatever it says of when it occurred, a record counts in the window that it arrives in.
        bounds = _Bounds(row["end_ms"], start_ms, row["end_ms"], row["end_ms"])
        asks.append(_Ask((row["user_id"], row["feature"]), bounds))
    counted = await _counted(connection, asks, Uses(uses.logged), grace_ms=grace_ms)
    for row, (logged, _) in zip(rows, counted, strict=True):
        user_id, feature, seconds = row["user_id"], row["feature"], row["seconds"]
        units = logged + _held_in_window(uses.held.get((user_id, feature), ()), row)
        if row["used"] > units or _limited_throughout(users[user_id], row, rules):
            of = f"{feature} window:{seconds}"
            if figures.compare(user_id, "usage_windows.used", of, row["used"], units):
                figures.mend_with("windows", (user_id, feature, seconds, units))


def _held_in_window(holds: Sequence[Any], row: Any) -> int:
    seconds, end_ms = row["seconds"], row["end_ms"]
    return sum(
        hold["amount"]
        for hold in holds
        for length, hold_end_ms in json.loads(hold["windows"])
        if length == seconds and has_units_of(end_ms, hold_end_ms, seconds=seconds)
    )


def _limited_throughout(user: Any, row: Any, rules: Rules | None) -> bool:
    """Whether the user's tier has had the limit since before the window was opened."""
    if rules is None or rules.applied_at_ms > row["end_ms"] - row["seconds"] * 1000:
        return False
    tier = rules.tiers.get(user["tier"])
    limits = (tier.limits_of(row["feature"]) if tier else None) or ()
    return any(limit.per == f"window:{row['seconds']}" for limit in limits)


async def _counted(
    connection: asyncpg.Connection[Any], asks: Sequence[_Ask], uses: Uses, *, grace_ms: int
) -> list[tuple[int, bool]]:
    """Of each window asked for, the units that count in it, and whether some count in a later one."""
    if not asks:
        return []
    users = list({ask.key[0]: None for ask in asks})
    rows = [(*ask.key, *map(instant_of, ask.bounds)) for ask in asks]
    columns = [list(column) for column in zip(*rows, strict=True)]
    grace = timedelta(milliseconds=grace_ms)
    found: list[tuple[int, bool]] = [(0, False)] * len(asks)
    for row in await _fetch(connection, "verify_counted", users, *columns, grace):
        found[row["place"] - 1] = (row["units"], row["later"])
    for place, (key, bounds) in enumerate(asks):
        for hold in uses.held.get(key, ()):
            units, later = found[place]
            reserved_ms = instant_ms(hold["reserved_at"])
            if reserved_ms >= bounds.end_ms:
                found[place] = (units, True)
            elif reserved_ms >= bounds.start_ms:
                found[place] = (units + hold["amount"], later)
    return found


async def _fetch(connection: asyncpg.Connection[Any], name: str, *arguments: Any) -> list[Any]:
    rows: list[Any] = await connection.fetch(
        statement("service", name), *arguments, timeout=STATEMENT_S_MAX
    )
    return rows


def _calendar(user: Any) -> Calendar:
    return Calendar(user["timezone"], user["anchor_ms"], user["cycle_months"])


def _calendar_of(per: str, calendar: Calendar) -> Calendar:
    """What of it the period depends on, so that users share their periods."""
    return calendar if per == "cycle" else _zone(calendar.timezone)


@lru_cache(maxsize=1_024)
def _zone(timezone: str) -> Calendar:
    return Calendar(timezone)


@lru_cache(maxsize=65_536)
def _bounds(per: str, at_ms: int, calendar: Calendar) -> _Bounds:
    """The window of *per* that contains *at_ms*, and its neighbours."""
    window = window_at(per, at_ms, calendar)
    assert window.end_ms is not None, "a lifetime is not asked for"
    after = window_at(per, window.end_ms, calendar)
    assert after.end_ms is not None
    before = window_at(per, window.start_ms - 1, calendar)
    return _Bounds(before.start_ms, window.start_ms, window.end_ms, after.end_ms)
