"""How a user's standing is written down in Redis: by whoever loads it, for whoever rolls or reads it.

The admit script reads the hash and never the grants: it needs only what is spendable now, and the
instant up to which that is true. The grants lie beside it, so that passing that instant, or the
end of a period, takes a pure function and no database.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

from quota.account import Account
from quota.burndown import Grant
from quota.period import CALENDAR_PERIODS, Calendar, Window, window_at
from quota.rules import per_code, per_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from quota.decision import Limit

__all__ = ["Profile", "counter_line", "head_text", "read_counters", "windows_text"]

_GRANT_FIELDS = (
    "name",
    "amount",
    "left",
    "priority",
    "kind",
    "effective_at_ms",
    "expires_at_ms",
    "voided_at_ms",
    "created_at_ms",
)


@dataclass(frozen=True, slots=True)
class Profile:
    """What of a user changes seldom: calendar, and the grants as they were when *net* was so much."""

    calendar: Calendar
    grants: tuple[Grant, ...]
    overage: int
    net: int
    at_ms: int

    @classmethod
    def of(cls, calendar: Calendar, account: Account, *, at_ms: int) -> Profile:
        """The profile of *account* as it stands at *at_ms*."""
        return cls(
            calendar, tuple(account.grants()), account.overage, account.net(at_ms=at_ms), at_ms
        )

    def account(self, net: int) -> Account:
        """The account when the hash says *net*: what was burnt since is taken in burn order.

        Exact, because the hash refuses decisions from the first instant at which another grant
        could have paid.
        """
        account = Account(self.grants, self.overage, at_ms=self.at_ms)
        account.charge(self.net - net, at_ms=self.at_ms)
        return account

    def dump(self) -> str:
        """As JSON, for the key beside the quota hash."""
        calendar = self.calendar
        grants = [
            [str(grant.id), *(getattr(grant, name) for name in _GRANT_FIELDS)]
            for grant in self.grants
        ]
        return json.dumps(
            [
                [calendar.timezone, calendar.anchor_ms, calendar.cycle_months],
                grants,
                self.overage,
                self.net,
                self.at_ms,
            ]
        )

    @classmethod
    def load(cls, text: str | bytes) -> Profile:
        """The inverse of `dump`."""
        (timezone, anchor_ms, cycle_months), rows, overage, net, at_ms = json.loads(text)
        grants = tuple(
            Grant(id=UUID(row[0]), **dict(zip(_GRANT_FIELDS, row[1:], strict=True))) for row in rows
        )
        return cls(Calendar(timezone, anchor_ms, cycle_months), grants, overage, net, at_ms)


def head_text(*, epoch: int, valid_until_ms: int | None, tier: str) -> str:
    """Field `h` of the quota hash."""
    return f"{epoch},{valid_until_ms or 0},{tier}"


def windows_text(calendar: Calendar, at_ms: int) -> str:
    """Field `w` of the quota hash: the calendar windows that run at *at_ms*."""
    windows = (
        (per, window_at(per, at_ms, calendar)) for per in CALENDAR_PERIODS if per != "lifetime"
    )
    return (
        "".join(f";{per_code(per)},{window.start_ms},{window.end_ms}" for per, window in windows)
        + ";"
    )


def counter_line(limits: Iterable[Limit], used: Mapping[str, tuple[Window, int]]) -> bytes:
    """A counter field of the quota hash: *used* by period, in the order of the tier's limits.

    A period without a count is over: a window of so many seconds that nobody opened yet.
    """
    pers = [limit.per for limit in limits]
    numbers = [number for per in pers for number in _end_and_used(used.get(per, _OVER))]
    return (
        ",".join(map(per_code, pers)).encode() + b"|" + struct.pack(f"<{len(numbers)}d", *numbers)
    )


_OVER = (Window(0, 1), 0)  # a millisecond after the epoch


def _end_and_used(counted: tuple[Window, int]) -> tuple[int, int]:
    return counted[0].end_ms or 0, counted[1]


def read_counters(line: bytes) -> list[tuple[str, int, int]]:
    """Each counter of a field as period, end in ms (0 = never) and used."""
    sign, _, numbers = line.partition(b"|")
    pers = [per_name(code) for code in sign.decode().split(",") if code]
    values: Any = struct.unpack(f"<{2 * len(pers)}d", numbers)
    return [(per, int(values[2 * n]), int(values[2 * n + 1])) for n, per in enumerate(pers)]
