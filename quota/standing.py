"""What Redis keeps of one user: a hash for the admit script, and a profile for rolling it over.

The admit script reads the hash and never the grants: it needs only what is spendable now, and the
instant up to which that is true. The grants lie beside it, so that passing that instant, or the
end of a period, takes a pure function and no database.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import UUID

from quota.account import Account, Payment, payment_rows, payments_of
from quota.burndown import Change, Grant
from quota.held import Held
from quota.period import CALENDAR_PERIODS, Calendar, Window, window_at
from quota.rules import per_code, per_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from quota.decision import Limit

__all__ = [
    "Profile",
    "counter_line",
    "counter_sign",
    "head_text",
    "hold_fields",
    "read_counters",
    "standing_fields",
    "windows_text",
]

FORM = 2  # of a profile: count it up whenever what `Profile.dump` writes changes
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
    "every",
    "anchor_ms",
    "renewed_at_ms",
    "overused",
    "changed_at_ms",
    "changes_to",
)


@dataclass(frozen=True, slots=True)
class Profile:
    """What of a user changes seldom: calendar, and the grants as they were when *net* was so much."""

    calendar: Calendar
    grants: tuple[Grant, ...]
    overage: int
    net: int
    at_ms: int
    holds: Mapping[str, list[Payment]] = field(default_factory=dict)

    @classmethod
    def of(cls, calendar: Calendar, account: Account, *, at_ms: int) -> Profile:
        """The profile of *account* as it stands at *at_ms*."""
        return cls(
            calendar,
            tuple(account.grants()),
            account.overage,
            account.net(at_ms=at_ms),
            at_ms,
            {key: payments for key, payments in account.holds.items() if payments},
        )

    def account(self, net: int, journal: bytes = b"") -> Account:
        """The account when the hash says *net*: what was burnt since is taken in burn order.

        The *journal* tells which part of it holds took and gave back, and when. Exact, because the
        hash refuses decisions from the first instant at which another grant could have paid.
        """
        account = Account(self.grants, self.overage, at_ms=self.at_ms, holds=self.holds)
        before = self.net
        for entry in journal.split(b"\0")[:-1]:
            op, found, micro, key = entry.decode().split(",", 3)
            account.charge(before - int(found), at_ms=self.at_ms)
            if op == "h":
                account.hold(key, int(micro), at_ms=self.at_ms)
            else:
                account.settle(key, int(micro))
            before = account.net(at_ms=self.at_ms)
        account.charge(before - net, at_ms=self.at_ms)
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
                FORM,
                [calendar.timezone, calendar.anchor_ms, calendar.cycle_months],
                grants,
                self.overage,
                self.net,
                self.at_ms,
                {key: payment_rows(payments) for key, payments in self.holds.items()},
            ]
        )

    @staticmethod
    def readable(text: bytes) -> bool:
        """Whether *text* is a profile in the form of this version; else the user has to be loaded again."""
        return text.startswith(b"[%d, " % FORM)

    @classmethod
    def load(cls, text: str | bytes) -> Profile:
        """The inverse of `dump`."""
        _, (timezone, anchor_ms, cycle_months), rows, overage, net, at_ms, holds = json.loads(text)
        grants = tuple(_grant(row) for row in rows)
        calendar = Calendar(timezone, anchor_ms, cycle_months)
        payments = {key: payments_of(rows) for key, rows in holds.items()}
        return cls(calendar, grants, overage, net, at_ms, payments)


def _grant(row: list[Any]) -> Grant:
    fields = dict(zip(_GRANT_FIELDS, row[1:], strict=True))
    changes = tuple(Change(*change) for change in fields.pop("changes_to"))
    return Grant(id=UUID(row[0]), **fields, changes_to=changes)


def standing_fields(
    calendar: Calendar,
    account: Account,
    holds: Iterable[Held],
    *,
    epoch: int,
    tier: str,
    allowance: str,
    at_ms: int,
) -> dict[str, str | bytes]:
    """The fields of the quota hash at *at_ms*, but for the counters; *holds* are the open ones."""
    holds = list(holds)
    ends = [held.expires_at_ms for held in holds]
    changes_at_ms = account.valid_until_ms(at_ms=at_ms)
    if changes_at_ms is not None:
        ends.append(changes_at_ms)
    return {
        "h": head_text(
            epoch=epoch, valid_until_ms=min(ends, default=None), tier=tier, allowance=allowance
        ),
        "c": str(account.net(at_ms=at_ms)),
        "w": windows_text(calendar, at_ms),
        **hold_fields(account, holds),
    }


def hold_fields(account: Account, holds: Iterable[Held]) -> dict[str, str | bytes]:
    """The fields of open holds: what each would give back now is the account's to say."""
    return {
        f"o:{held.key}": held.dump(
            account.returnable(held.key) if held.key in account.holds else []
        )
        for held in holds
    }


def head_text(*, epoch: int, valid_until_ms: int | None, tier: str, allowance: str) -> str:
    """Field `h` of the quota hash; *allowance* is that of the tier that the credits were made with."""
    return f"{epoch},{valid_until_ms or 0},{tier},{allowance}"


def windows_text(calendar: Calendar, at_ms: int) -> str:
    """Field `w` of the quota hash: the calendar windows that run at *at_ms*, and the start of those before."""
    texts = []
    for per in CALENDAR_PERIODS:
        window = window_at(per, at_ms, calendar)
        if window.end_ms is not None:
            before = window_at(per, window.start_ms - 1, calendar)
            texts.append(f";{per_code(per)},{window.start_ms},{window.end_ms},{before.start_ms}")
    return "".join(texts) + ";"


def counter_line(limits: Iterable[Limit], used: Mapping[str, tuple[Window, int]]) -> bytes:
    """A counter field of the quota hash: *used* by period, in the order of the tier's limits.

    A period without a count is over: a window of so many seconds that nobody opened yet.
    """
    limits = list(limits)
    numbers = [number for limit in limits for number in _end_and_used(used.get(limit.per, _OVER))]
    return counter_sign(limits) + struct.pack(f"<{len(numbers)}d", *numbers)


def counter_sign(limits: Iterable[Limit]) -> bytes:
    """How a counter field begins that was made for *limits*."""
    return ",".join(per_code(limit.per) for limit in limits).encode() + b"|"


_OVER = (Window(0, 1), 0)  # a millisecond after the epoch


def _end_and_used(counted: tuple[Window, int]) -> tuple[int, int]:
    return counted[0].end_ms or 0, counted[1]


def read_counters(line: bytes) -> list[tuple[str, int, int]]:
    """Each counter of a field as period, end in ms (0 = never) and used."""
    sign, _, numbers = line.partition(b"|")
    pers = [per_name(code) for code in sign.decode().split(",") if code]
    values: Any = struct.unpack(f"<{2 * len(pers)}d", numbers)
    return [(per, int(values[2 * n]), int(values[2 * n + 1])) for n, per in enumerate(pers)]
