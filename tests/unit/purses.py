"""Accounts of small numbers for the tests of credits, where sums and instants meet, and what must be true of them."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from hypothesis import strategies as st

from quota.account import Account, Move
from quota.burndown import KINDS, Change, Grant
from quota.values import instant_ms

if TYPE_CHECKING:
    from uuid import UUID

    from quota.account import Payments

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
START_MS = instant_ms(datetime(2025, 1, 31, tzinfo=UTC))  # months counted from it are clamped
HOURS_MAX = 2_400  # 100 days: three recurrences by the month
VERBS = ("charge", "hold", "settle", "refund", "void", "reset", "reset keeping overage", "wait")

Step = tuple[int, str, int]  # hours after the step before, what, how much

moments = st.integers(0, HOURS_MAX // 6).map(lambda sixths: START_MS + 6 * sixths * HOUR_MS)
recurrences = st.sampled_from(["day", "week", "month"])


changes = st.lists(st.builds(Change, moments, st.integers(0, 90), recurrences), max_size=3).map(
    lambda found: tuple(sorted(found, key=lambda change: change.at_ms))
)


@st.composite
def grants(draw: st.DrawFn, *, recurring: bool = True) -> Grant:
    """A grant of up to 60, at some time around the hundred days; half of them recur."""
    amount = draw(st.integers(0, 60))
    begins_ms = draw(moments)
    every = draw(st.none() | recurrences) if recurring else None
    rollover = sorted(draw(st.tuples(st.integers(0, 80), st.integers(0, 80))))
    return Grant(
        id=draw(st.uuids()),
        amount=amount,
        left=draw(st.integers(0, amount)),
        priority=draw(st.integers(0, 1)),
        kind=draw(st.sampled_from(KINDS)),
        effective_at_ms=begins_ms,
        expires_at_ms=draw(st.none() | moments),
        voided_at_ms=draw(st.none() | moments) if draw(st.booleans()) else None,
        created_at_ms=begins_ms,
        name=draw(st.none() | st.text(max_size=3)),
        min_rollover=0 if every else rollover[0],
        max_rollover=rollover[1],
        every=every,
        anchor_ms=draw(st.none() | st.just(START_MS - 17 * HOUR_MS)),
        changes_to=draw(changes) if every else (),
    )


purses = st.lists(grants(), max_size=5, unique_by=lambda grant: grant.id)
plain_purses = st.lists(grants(recurring=False), max_size=5, unique_by=lambda grant: grant.id)
steps = st.lists(
    st.tuples(st.integers(0, 240), st.sampled_from(VERBS), st.integers(0, 90)), max_size=12
)


def copy_of(account: Account) -> Account:
    """The account as whoever stores and reads it again has it."""
    return Account(
        account.grants(), account.overage, at_ms=account.at_ms, holds=dict(account.holds)
    )


class Walk:
    """An account on its way from step to step, and the sums of everything that moved."""

    def __init__(self, account: Account) -> None:
        self.account = account
        self.at_ms = account.at_ms
        self.granted = sum(grant.left for grant in account.grants())
        self.burnt = account.overage
        self.voided = 0
        self.moved: Counter[tuple[str, UUID | None]] = Counter()
        self.paid: list[tuple[Payments, int]] = []
        self.reserved_ms: dict[str, int] = {}
        self.note(account.advance(self.at_ms))

    def note(self, moves: list[Move]) -> None:
        """Add what moved."""
        for move in moves:
            assert move.amount > 0
            assert move.at_ms <= self.account.at_ms
            self.moved[move.kind, move.grant_id] += move.amount

    def total(self, kind: str) -> int:
        """The sum of all moves of a kind."""
        return sum(amount for (of, _), amount in self.moved.items() if of == kind)

    def take(self, step: Step) -> None:
        """Let the hours pass, and do what the step says."""
        hours, verb, amount = step
        self.at_ms += hours * HOUR_MS
        if verb.startswith("reset"):
            keeps = verb != "reset"
            self.note(self.account.reset(at_ms=self.at_ms, preserve_overage=keeps))
            return
        self.note(self.account.advance(self.at_ms))
        match verb:
            case "charge":
                self._charge(amount)
            case "hold":
                key = f"hold {len(self.account.holds)} at {self.at_ms}"
                self.account.hold(key, amount, at_ms=self.at_ms)
                self.reserved_ms[key] = self.at_ms
            case "settle" if self.account.holds:
                self._settle(sorted(self.account.holds)[amount % len(self.account.holds)], amount)
            case "refund" if self.paid:
                payments, paid_at_ms = self.paid.pop(amount % len(self.paid))
                moves = self.account.give_back(payments, amount, paid_at_ms=paid_at_ms)
                self.note(moves)
                self.burnt -= sum(move.amount for move in moves if move.kind == "returned")
            case "void" if grants := self.account.grants():
                self.voided += self.account.void(grants[amount % len(grants)].id, at_ms=self.at_ms)

    def _charge(self, cost: int) -> None:
        payments, rest = self.account.charge(cost, at_ms=self.at_ms)
        self.burnt += cost
        self.paid.append(([*payments, (None, rest)] if rest else payments, self.at_ms))

    def _settle(self, key: str, kept: int) -> None:
        held = sum(one.amount for one in self.account.holds[key])
        payments, moves = self.account.settle(key, kept)
        stays = sum(amount for _, amount in payments)
        back = sum(move.amount for move in moves if move.kind in ("returned", "lapsed"))
        assert stays == min(kept, held)
        assert stays + back == held
        self.burnt += stays
        self.paid.append((payments, self.reserved_ms[key]))
        self.note(moves)

    def check(self) -> None:
        """What has to be true of every account, at every instant."""
        account = self.account
        grants = account.grants()
        payments = [one for held in account.holds.values() for one in held]
        left, held = sum(grant.left for grant in grants), sum(one.amount for one in payments)
        gone = self.burnt + held + self.total("lapsed") + self.voided
        assert (
            self.granted + self.total("renewed") + self.total("forgiven")
            == gone + left - account.overage
        )
        assert min(self.burnt, account.overage, *(grant.left for grant in grants), 0) == 0
        assert all(one.amount > 0 for one in payments)
        spendable = sum(grant.left for grant in grants if grant.active(account.at_ms))
        assert not (spendable and account.overage)
        assert account.net(at_ms=account.at_ms) == spendable - account.overage
        assert account.overage >= sum(
            one.amount for one in payments if one.grant_id is None and one.returns
        )
        for grant in grants:
            if grant.every is not None:  # it is never more than whole, whatever comes back
                back = (one.amount for one in payments if one.grant_id == grant.id and one.returns)
                assert grant.left + sum(back) <= grant.amount
            beyond = (one.amount for one in payments if one.grant_id == grant.id and one.beyond)
            assert sum(beyond) <= grant.overused
        assert not any(one.returns and one.beyond for one in payments)
