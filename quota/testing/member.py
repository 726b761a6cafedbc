"""One user of `quota.testing`: standing, credits, what was counted under which key.

The decision, the periods, the burn order and the walk through time are the pure functions that the
service runs; here is only what Redis and PostgreSQL do for them, which is to remember.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from quota.account import Account
from quota.allowance import allowance_grant, allowance_id, moved_allowance
from quota.decision import FEATURE_NOT_IN_TIER, Decision, Standing, decide
from quota.errors import KeyConflictError
from quota.period import CALENDAR_PERIODS, Window, window_at
from quota.prices import cost_of_units, unit_of
from quota.testing.counters import Counters
from quota.testing.given import COMMITTED, EXPIRED, OPEN, Given, Hold, Use
from quota.testing.ledger import Ledger
from quota.values import MICRO_MAX

if TYPE_CHECKING:
    from quota.burndown import Grant
    from quota.decision import Limit
    from quota.period import Calendar
    from quota.refund import Refund
    from quota.rules import Rules, Tier
    from quota.values import UsageRecord, User

__all__ = ["Member"]


class Member:
    """A user, moved through time by each call."""

    def __init__(
        self,
        user: User,
        rules: Rules,
        calendar: Calendar,
        *,
        tier: str,
        at_ms: int,
        late_grace_ms: int,
    ) -> None:
        self.user = user
        self.rules = rules
        self.tier = tier
        self.calendar = calendar
        self.account = Account([])
        self.counters = Counters()
        self.ledger = Ledger()
        self.uses: list[Use] = []
        self.answers: dict[str, Given] = {}
        self.refunds: dict[str, Refund] = {}
        self._late_grace_ms = late_grace_ms
        self.set_rules(rules, at_ms=at_ms)

    @property
    def tier_rules(self) -> Tier | None:
        """The rules of the user's tier."""
        return self.rules.tiers.get(self.tier)

    def set_rules(self, rules: Rules, *, at_ms: int) -> None:
        """Go by *rules*, and by the tier as it is now: the allowance becomes the tier's."""
        self.rules = rules
        named, changes = allowance_id(self.user.id), rules.allowances_of(self.tier)
        there = next((grant for grant in self.account.grants() if grant.id == named), None)
        anchor_ms = self.calendar.anchor_ms
        if there is None:
            found = allowance_grant(self.user.id, changes, None, anchor_ms=anchor_ms, at_ms=at_ms)
        else:
            found = moved_allowance(changes, there, anchor_ms=anchor_ms, at_ms=at_ms)
        if found is not None:
            self.put_grant(found, at_ms=at_ms)

    def put_grant(self, grant: Grant, *, at_ms: int) -> None:
        """Add *grant*, or put it in the place of the one with its id."""
        account = self.account
        others = [other for other in account.grants() if other.id != grant.id]
        self.account = Account(
            [*others, grant], account.overage, at_ms=account.at_ms, holds=account.holds
        )
        self.ledger.moved(self.account.advance(at_ms))

    def grant_named(self, name: str) -> Grant | None:
        """The grant of that name, or with that id; never the allowance of the tier."""
        own = allowance_id(self.user.id)
        grants = [grant for grant in self.account.grants() if grant.id != own]
        named = next((grant for grant in grants if grant.name == name), None)
        return named or next((grant for grant in grants if str(grant.id) == name), None)

    def set_calendar(self, calendar: Calendar) -> None:
        """Count all that was used in the periods of *calendar* instead."""
        self.calendar = calendar
        self.counters.forget_calendar()
        for use in self.uses:
            kept = [place for place in use.places if place[0] not in CALENDAR_PERIODS]
            windows = self._calendar_windows(use.at_ms, use.at_ms)
            use.places = kept + self.counters.add(use.feature, use.amount - use.refunded, windows)

    def advance(self, at_ms: int) -> None:
        """Walk to *at_ms*: holds end and credits change at their own instants, in order."""
        self.end_holds(at_ms)
        self.ledger.moved(self.account.advance(at_ms))

    def end_holds(self, at_ms: int) -> None:
        """Walk to the last of the holds that are over by *at_ms*, and let each end at its own instant."""
        due = sorted(
            (given.hold.expires_at_ms, key)
            for key, given in self.answers.items()
            if given.hold is not None
            and given.hold.status == OPEN
            and given.hold.expires_at_ms <= at_ms
        )
        for expires_at_ms, key in due:
            self.ledger.moved(self.account.advance(expires_at_ms))
            self.give_up(self.answers[key], EXPIRED)

    def given(self, records: list[UsageRecord], *, ttl_ms: int | None = None) -> Given | None:
        """What was answered to this key before; None when it is new.

        Raises:
            KeyConflictError: to another record.
        """
        given = self.answers.get(records[0].key)
        if given is None:
            return None
        asked = (tuple(records), ttl_ms)
        if asked != (given.records, None if given.hold is None else given.hold.ttl_ms):
            raise KeyConflictError(records[0].key)
        return given

    def decide(
        self,
        record: UsageRecord,
        *,
        now_ms: int,
        take: bool = True,
        forced: bool = False,
        cost: int | None = None,
    ) -> Decision:
        """The decision on *record* as the user stands; nothing is counted.

        *cost*: where it is not that of the price now, as for what a commit has more than its hold.
        """
        if cost is None:
            cost = self.cost_of(record)
        limits = self._limits_of(record.feature)
        net = self.account.net(at_ms=now_ms)
        if limits is None and not forced:
            return Decision(
                False,
                FEATURE_NOT_IN_TIER,
                record.feature,
                record.amount,
                cost,
                net,
                (),
                now_ms,
                record.key,
            )
        states = [
            self.counters.state(record.feature, limit, self._window(record, limit.per, now_ms))
            for limit in limits or ()
        ]
        tier = self.tier_rules
        return decide(
            Standing(tuple(states), net, tier is not None and tier.overdraft),
            feature=record.feature,
            amount=record.amount,
            cost=cost,
            key=record.key,
            now_ms=now_ms,
            take=take,
            forced=forced,
        )

    def cost_of(self, record: UsageRecord) -> int:
        """Micro-credits that *record* costs on the user's tier; `InvalidValueError` where nobody can pay it."""
        return self.rules.cost(
            self.tier,
            record.feature,
            amount=record.amount,
            format=record.format,
            quality=record.quality,
        )

    def consume(self, record: UsageRecord, *, now_ms: int) -> Decision:
        """Decide on *record*, and count it if it is allowed."""
        decision = self.decide(record, now_ms=now_ms)
        if decision:
            use = self.take(record, decision.cost_micro, now_ms=now_ms)
            self.answers[record.key] = Given((record,), (decision,), [use])
        return decision

    def record(self, records: list[UsageRecord], *, now_ms: int) -> tuple[Decision, ...] | None:
        """Count what has happened, all of it; None where a counter could not hold it."""
        if not self._all_countable(records, now_ms=now_ms):
            return None
        decisions, uses = [], []
        for record in records:
            decision = self.decide(record, now_ms=now_ms, forced=True)
            decisions.append(decision)
            uses.append(self.take(record, decision.cost_micro, now_ms=now_ms))
        self.answers[records[0].key] = Given(tuple(records), tuple(decisions), uses)
        return tuple(decisions)

    def _all_countable(self, records: list[UsageRecord], *, now_ms: int) -> bool:
        owed = 0
        for record in records:
            decision = self.decide(record, now_ms=now_ms, take=False, forced=True)
            owed += decision.cost_micro
            if not decision or (owed and decision.credits_micro - owed < -MICRO_MAX):
                return False
        return True

    def take(self, record: UsageRecord, cost: int, *, now_ms: int) -> Use:
        """Count *record*, which was allowed, and burn its *cost*."""
        use = self.count(record, cost, now_ms=now_ms)
        payments, rest = self.account.charge(cost, at_ms=now_ms)
        use.payments = [*payments, (None, rest)] if rest else payments
        self.ledger.burnt(payments)
        return use

    def reserve(self, record: UsageRecord, *, ttl_ms: int, now_ms: int) -> Decision:
        """Decide on *record*, and set it aside instead of spending it."""
        decision = self.decide(record, now_ms=now_ms)
        if decision:
            use = self.count(record, decision.cost_micro, now_ms=now_ms)
            self.account.hold(record.key, decision.cost_micro, at_ms=now_ms)
            price = self.rules.price_of(self.tier, record.feature)
            unit = unit_of(price, format=record.format, quality=record.quality)
            ends = {state.per: state.resets_at_ms or 0 for state in decision.limits}
            hold = Hold(ttl_ms, unit, now_ms + ttl_ms, ends)
            self.answers[record.key] = Given((record,), (decision,), [use], hold)
        return decision

    def commit(self, given: Given, amount: int, *, now_ms: int) -> Decision | None:
        """Settle an open hold for *amount* units; the denial of what is more than held leaves it open."""
        hold, (use,), (record,) = given.hold, given.uses, given.records
        assert hold is not None
        cost = cost_of_units(*hold.price, amount=amount)
        surplus = replace(record, amount=amount - use.amount) if amount > use.amount else None
        if surplus is not None:
            decision = self.decide(surplus, now_ms=now_ms, cost=cost - use.cost)
            if not decision:
                return decision
        hold.status, hold.amount, hold.cost = COMMITTED, amount, cost
        kept = min(cost, use.cost)
        use.payments, moves = self.account.settle(record.key, kept)
        self.ledger.burnt(use.payments)
        self.ledger.moved(moves)
        if surplus is not None:
            given.uses.append(self.take(surplus, cost - use.cost, now_ms=now_ms))
        elif amount < use.amount:
            self.counters.give_back(use.feature, use.amount - amount, use.places)
            use.amount, use.cost = amount, cost
            self._drop_unused(given)
        return None

    def give_up(self, given: Given, status: str) -> None:
        """End an open hold without use: all of it goes back."""
        assert given.hold is not None
        given.hold.status = status
        (use,) = given.uses
        _, moves = self.account.settle(given.records[0].key, 0)
        self.ledger.moved(moves)
        self.counters.give_back(use.feature, use.amount, use.places)
        use.amount = use.cost = 0
        self._drop_unused(given)

    def _drop_unused(self, given: Given) -> None:
        for use in [use for use in given.uses if not use.amount]:
            given.uses.remove(use)
            self.uses.remove(use)

    def count(self, record: UsageRecord, cost: int, *, now_ms: int) -> Use:
        """Count the units of *record* in every period, limited or not: tiers change."""
        occurred_ms = now_ms if record.occurred_at_ms is None else record.occurred_at_ms
        windows = self._calendar_windows(now_ms, occurred_ms)
        for limit in self._limits_of(record.feature) or ():
            if limit.per not in CALENDAR_PERIODS:
                window = self._window(record, limit.per, now_ms)
                windows[limit.per] = window
        places = self.counters.add(record.feature, record.amount, windows)
        use = Use(record.feature, record.amount, cost, occurred_ms, now_ms, places)
        self.uses.append(use)
        return use

    def _limits_of(self, feature: str) -> tuple[Limit, ...] | None:
        tier = self.tier_rules
        return None if tier is None else tier.limits_of(feature)

    def _window(self, record: UsageRecord, per: str, now_ms: int) -> Window:
        occurred_ms = record.occurred_at_ms
        if per in CALENDAR_PERIODS and occurred_ms is not None:
            return self._late_window(per, now_ms, occurred_ms)
        return self.counters.window(record.feature, per, now_ms, self.calendar)

    def _calendar_windows(self, now_ms: int, occurred_ms: int) -> dict[str, Window]:
        return {per: self._late_window(per, now_ms, occurred_ms) for per in CALENDAR_PERIODS}

    def _late_window(self, per: str, now_ms: int, occurred_ms: int) -> Window:
        """The window that what occurred then counts in now: its own, while that is not long over."""
        running = window_at(per, now_ms, self.calendar)
        if occurred_ms >= running.start_ms or now_ms >= running.start_ms + self._late_grace_ms:
            return running
        before = window_at(per, running.start_ms - 1, self.calendar)
        return before if before.start_ms <= occurred_ms else running
