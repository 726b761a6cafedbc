"""Where users stand: what PostgreSQL has of them, moved on by what the log has behind it.

The lines of the log move it as they move Redis when they are admitted and PostgreSQL when they are
applied (`worker.batch`): the three have to come to the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from quota.account import Account
from quota.allowance import allowance_grant, allowance_id
from quota.held import Held
from quota.period import CALENDAR_PERIODS, Window, window_at
from quota.values import instant_ms
from service.opened import add_opened, has_units_of
from service.snapshot import StoredHold, calendar_of
from service.usage_log import COMMIT, EXPIRE, RELEASE, RESERVE

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime
    from uuid import UUID

    from quota.decision import Limit
    from quota.period import Calendar
    from quota.rules import Rules, Tier
    from service.snapshot import Event, Stored

__all__ = ["Standing", "counted_window", "standing_of"]


def counted_window(
    per: str, occurred_ms: int, arrived_ms: int, calendar: Calendar, *, grace_ms: int
) -> Window:
    """The window of the calendar period *per* that counts what occurred then and is admitted now.

    Its own while that runs, or was the last one and is not long over; else the running one (DESIGN 5,
    "Late records").
    """
    running = window_at(per, arrived_ms, calendar)
    if occurred_ms >= running.start_ms or arrived_ms >= running.start_ms + grace_ms:
        return running
    before = window_at(per, running.start_ms - 1, calendar)
    return before if before.start_ms <= occurred_ms else running


class Counted:
    """Units by feature: in the calendar windows that run, in those before, and in opened windows."""

    def __init__(self, calendar: Calendar, at_ms: int, *, grace_ms: int) -> None:
        self.calendar = calendar
        self.grace_ms = grace_ms
        self.running = {per: window_at(per, at_ms, calendar) for per in CALENDAR_PERIODS}
        self.used: dict[str, dict[str, int]] = {}
        self.used_before: dict[tuple[str, str], int] = {}
        self.opened: dict[tuple[str, int], tuple[int, int]] = {}  # by seconds: end in ms, units

    def of(self, feature: str) -> dict[str, tuple[Window, int]]:
        """The window and the units of every period of *feature*; an opened one runs to its end."""
        used = self.used.get(feature, {})
        counted = {per: (window, used.get(per, 0)) for per, window in self.running.items()}
        for (name, seconds), (end_ms, units) in self.opened.items():
            if name == feature:
                counted[f"window:{seconds}"] = (Window(end_ms - seconds * 1000, end_ms), units)
        return counted

    def before(self, feature: str, pers: Iterable[str]) -> dict[str, tuple[Window, int]]:
        """The window before the running one, and its units, of those periods that were counted."""
        counted = {}
        for per in pers:
            window = window_at(per, self.running[per].start_ms - 1, self.calendar)
            counted[per] = (window, self.used_before.get((feature, per), 0))
        return counted

    def add(
        self,
        feature: str,
        units: int,
        *,
        occurred_ms: int,
        arrived_ms: int,
        windows: Iterable[tuple[int, int]] = (),
    ) -> None:
        """Count *units*, fewer than none to take them back; *windows* as seconds and end in ms."""
        used = self.used.setdefault(feature, {})
        for per, running in self.running.items():
            window = counted_window(
                per, occurred_ms, arrived_ms, self.calendar, grace_ms=self.grace_ms
            )
            if window == running:
                used[per] = max(0, used.get(per, 0) + units)
            elif window.end_ms == running.start_ms:
                before = self.used_before.get((feature, per), 0)
                self.used_before[feature, per] = max(0, before + units)
        for seconds, end_ms in windows:
            self.open(feature, seconds, end_ms, units)

    def add_before(self, feature: str, units: int, at_ms: int) -> None:
        """Count *units* of that instant in the windows before the running ones only."""
        for per, running in self.running.items():
            if window_at(per, at_ms, self.calendar).end_ms == running.start_ms:
                self.used_before[feature, per] = self.used_before.get((feature, per), 0) + units

    def open(self, feature: str, seconds: int, end_ms: int, units: int) -> None:
        """Count *units* in a window opened by use."""
        running = self.opened.get((feature, seconds))
        self.opened[feature, seconds] = add_opened(running, end_ms, units, seconds=seconds)

    def opened_with(self, feature: str, seconds: int, end_ms: int) -> int:
        """The end in ms of the window that has what was counted in the one that ends at *end_ms*."""
        running_end_ms, _ = self.opened.get((feature, seconds), (end_ms, 0))
        return running_end_ms if has_units_of(running_end_ms, end_ms, seconds=seconds) else end_ms


@dataclass(slots=True)
class Standing:
    """A user, moved from one event to the next."""

    user_id: UUID
    tier_name: str
    tier: Tier | None
    account: Account
    counted: Counted
    holds: dict[str, StoredHold] = field(default_factory=dict)

    @property
    def calendar(self) -> Calendar:
        """What the user's periods depend on."""
        return self.counted.calendar

    def limits_of(self, feature: str) -> Sequence[Limit]:
        """The limits on *feature*, none where the tier has none or is gone."""
        return (self.tier.limits_of(feature) if self.tier else None) or ()

    def features(self) -> set[str]:
        """Every feature of which something was ever counted."""
        opened = {feature for feature, _ in self.counted.opened}
        return {*self.counted.used, *opened, *(name for name, _ in self.counted.used_before)}

    def held(self) -> list[Held]:
        """The open holds as Redis keeps them, in the order in which they expire."""
        holds = [self._held(key, hold) for key, hold in self.holds.items()]
        return sorted(holds, key=lambda held: (held.expires_at_ms, held.key))

    def end_due(self, at_ms: int) -> None:
        """Let the holds expire that are over by *at_ms*, in their order."""
        for held in self.held():
            if held.expires_at_ms <= at_ms:
                self._end(held.key, 0, 0, at_ms=held.expires_at_ms)
        self.account.advance(at_ms)

    def take(self, event: Event) -> None:
        """Move on by a line of the log; the end of a hold that is not open is a repeat."""
        line, cost, at_ms = event
        op = line.code.op if line.code else None
        if op is None or op == RESERVE:
            occurred_ms = at_ms if line.occurred_at_ms is None else line.occurred_at_ms
            windows = line.windows or ()
            self.counted.add(
                line.feature,
                line.amount,
                occurred_ms=occurred_ms,
                arrived_ms=at_ms,
                windows=windows,
            )
            if op == RESERVE:
                self._reserve(event)
            else:
                self.account.charge(cost, at_ms=at_ms)
        elif line.key in self.holds:
            assert line.code is not None
            assert op in (COMMIT, RELEASE, EXPIRE)
            ended_ms = line.code.at_ms if op == EXPIRE else at_ms
            self._end(line.key, line.amount, cost, at_ms=ended_ms, windows=line.windows or ())

    def _reserve(self, event: Event) -> None:
        line, cost, at_ms = event
        assert line.code is not None
        numerator, _, denominator = line.code.price.partition("/")
        price = (int(numerator), int(denominator))
        windows = line.windows or []
        self.holds[line.key] = StoredHold(
            line.feature, line.amount, cost, price, [], windows, at_ms, line.code.at_ms
        )
        self.account.hold(line.key, cost, at_ms=at_ms)

    def _end(
        self,
        key: str,
        amount: int,
        cost: int,
        *,
        at_ms: int,
        windows: Iterable[tuple[int, int]] = (),
    ) -> None:
        hold = self.holds.pop(key)
        if amount > hold.amount:
            surplus = amount - hold.amount
            self.counted.add(
                hold.feature, surplus, occurred_ms=at_ms, arrived_ms=at_ms, windows=windows
            )
        elif amount < hold.amount:
            self.counted.add(
                hold.feature,
                amount - hold.amount,
                occurred_ms=hold.reserved_ms,
                arrived_ms=hold.reserved_ms,
                windows=hold.windows,
            )
        self.account.advance(at_ms)
        if key in self.account.holds:
            self.account.settle(key, min(cost, hold.cost))
        if cost > hold.cost:
            self.account.charge(cost - hold.cost, at_ms=at_ms)

    def _held(self, key: str, hold: StoredHold) -> Held:
        opened = {
            f"window:{seconds}": self.counted.opened_with(hold.feature, seconds, end_ms)
            for seconds, end_ms in hold.windows
        }
        ends = {}
        for limit in self.limits_of(hold.feature):
            if limit.per in opened:
                ends[limit.per] = opened[limit.per]
            elif limit.per in CALENDAR_PERIODS:
                ends[limit.per] = window_at(limit.per, hold.reserved_ms, self.calendar).end_ms or 0
        return Held(key, hold.feature, hold.amount, hold.cost, hold.price, hold.expires_ms, ends)


def standing_of(
    stored: Stored,
    events: Sequence[Event],
    rules: Rules,
    *,
    at_ms: int,
    grace_ms: int,
) -> Standing:
    """Where a user stands after *events*, with what was counted in the windows that run at *at_ms*.

    Time-driven events after the last line are not taken yet.
    """
    row = stored.row
    counted = Counted(calendar_of(row), at_ms, grace_ms=grace_ms)
    for counters in stored.counters:
        counted.used[counters["feature"]] = {
            per: _running(counters, per, window) for per, window in counted.running.items()
        }
    for window in stored.windows:
        place = (window["feature"], window["seconds"])
        counted.opened[place] = (window["end_ms"], window["used"])
    counted.used_before.update(stored.before)
    for hold in stored.holds.values():
        counted.add_before(hold.feature, hold.amount, hold.reserved_ms)
    standing = Standing(
        row["id"],
        row["tier"],
        rules.tiers.get(row["tier"]),
        _account(stored, rules, first_ms=events[0].at_ms if events else at_ms),
        counted,
        dict(stored.holds),
    )
    for event in events:
        standing.take(event)
    return standing


def _account(stored: Stored, rules: Rules, *, first_ms: int) -> Account:
    row = stored.row
    grants = {grant.id: grant for grant in stored.grants}
    allowance = allowance_grant(
        row["id"],
        rules.allowances_of(row["tier"]),
        grants.pop(allowance_id(row["id"]), None),
        anchor_ms=row["anchor_ms"],
        at_ms=first_ms,
    )
    return Account(
        [*grants.values(), *([] if allowance is None else [allowance])],
        row["overage_micro"],
        at_ms=row["overage_at_ms"] or 0,
        # One without a cost has no payments, and Redis keeps none for it.
        holds={key: hold.payments for key, hold in stored.holds.items() if hold.payments},
    )


def _running(row: Any, per: str, window: Window) -> int:
    if per == "lifetime":
        return int(row["lifetime_used"])
    start: datetime = row[f"{per}_start"]
    return int(row[f"{per}_used"]) if instant_ms(start) == window.start_ms else 0
