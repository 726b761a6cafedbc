"""What an operator sets up, in memory: tiers, users, grants; and the clock that all of it goes by."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from quota.allowance import ALLOWANCE_NAME, allowance_id
from quota.burndown import KINDS, Grant
from quota.errors import InvalidValueError, UnknownGrantError, UnknownUserError
from quota.period import (
    RENEWALS,
    Calendar,
    parse_anchor,
    parse_cycle_months,
    parse_timezone,
)
from quota.rules import Rules
from quota.testing.member import Member
from quota.values import (
    credits_of,
    instant_ms,
    instant_text,
    parse_credits,
    parse_given,
    parse_instant,
    parse_key,
    parse_user_id,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from decimal import Decimal
    from uuid import UUID

    from quota.values import User

__all__ = ["Installation"]

LATE_GRACE_S = 3_600  # as the service's LATE_GRACE
_PRIORITY_MAX = 32_767  # as the service has it
_LAST_YEAR = 8999  # the periods of an instant must end within the years that dates have
_SAME = (
    "amount",
    "priority",
    "kind",
    "expires_at_ms",
    "every",
    "min_rollover",
    "max_rollover",
)
_SAME_BEGINNING = (*_SAME, "effective_at_ms")  # of a repeat that says when it begins


class Installation:
    """Tiers, users and their grants.

    *tiers* is the content of a `tiers.toml`. *clock* tells the time where a call has no `now`. Keys
    are remembered for ever, as PostgreSQL remembers them.
    """

    def __init__(
        self,
        tiers: Mapping[str, Any] | Rules,
        *,
        clock: Callable[[], datetime] | None = None,
        auto_provision: bool = True,
        late_grace_s: int = LATE_GRACE_S,
    ) -> None:
        self._rules = tiers if isinstance(tiers, Rules) else Rules.from_document(dict(tiers))
        self._clock = clock or _wall_clock
        self._auto_provision = auto_provision
        self._late_grace_ms = 1000 * late_grace_s
        self._members: dict[UUID, Member] = {}

    async def apply_tiers(self, tiers: Mapping[str, Any], *, now: datetime | None = None) -> None:
        """Put other tiers in force, for every user at once.

        Raises:
            InvalidValueError: an entry is wrong, or a tier that users are on is missing.
        """
        now_ms, rules = self._now_ms(now), Rules.from_document(dict(tiers))
        for member in self._members.values():
            if member.tier not in rules.tiers:
                expected = "the tier to stay, because users are on it (move them first)"
                raise InvalidValueError(f"tiers.{member.tier}", None, expected)
        self._rules = rules
        for member in self._members.values():
            member.advance(now_ms)
            member.set_rules(rules, at_ms=now_ms)

    async def set_user(
        self,
        user_id: object,
        *,
        tier: str | None = None,
        timezone: str | None = None,
        anchor: object | None = None,
        cycle_months: int | None = None,
        now: datetime | None = None,
    ) -> None:
        """Make or change a user; what is None stays as it is.

        Raises:
            InvalidValueError: a value was refused; nothing changed.
        """
        user, now_ms = parse_user_id(user_id), self._now_ms(now)
        if tier is not None and tier not in self._rules.tiers:
            names = ", ".join(self._rules.tiers)
            raise InvalidValueError("tier", tier, f"one of the tiers: {names}")
        zone = None if timezone is None else parse_timezone(timezone)
        months = None if cycle_months is None else parse_cycle_months(cycle_months)
        anchor_ms = None if anchor is None else instant_ms(parse_anchor(anchor))
        there = self._members.get(user.id)
        before = Calendar("UTC", now_ms, 1) if there is None else there.calendar
        calendar = Calendar(
            zone or before.timezone,
            before.anchor_ms if anchor_ms is None else anchor_ms,
            months or before.cycle_months,
        )
        if there is None:
            self._make(user, calendar, tier or self._rules.default_tier, now_ms)
            return
        there.advance(now_ms)
        there.tier = tier or there.tier
        if calendar != before:
            there.set_calendar(calendar)
        there.set_rules(self._rules, at_ms=now_ms)

    async def grant(
        self,
        user_id: object,
        amount: object,
        *,
        id: str | None = None,
        priority: int = 1,
        kind: str = "granted",
        effective_at: object | None = None,
        expires_at: object | None = None,
        every: str | None = None,
        min_rollover: object = 0,
        max_rollover: object = 0,
        now: datetime | None = None,
    ) -> Grant:
        """Give a user credits; with an *id*, a repeat answers the grant that is there.

        Raises:
            InvalidValueError: a value was refused, or the id is another grant's; nothing changed.
        """
        user, now_ms = parse_user_id(user_id), self._now_ms(now)
        micro = parse_given(amount)
        grant = Grant(
            id=uuid4(),
            amount=micro,
            left=micro,
            priority=priority,
            kind=kind,
            effective_at_ms=now_ms if effective_at is None else _ms(effective_at, "effective_at"),
            expires_at_ms=None if expires_at is None else _ms(expires_at, "expires_at"),
            created_at_ms=now_ms,
            name=None if id is None else _grant_name(id),
            min_rollover=parse_credits(min_rollover, field="min_rollover"),
            max_rollover=parse_credits(max_rollover, field="max_rollover"),
            every=every,
        )
        _refuse_impossible(grant)
        member = self._present(user, now_ms)
        there = None if grant.name is None else member.grant_named(grant.name)
        if there is not None:
            return _same_or_refused(
                there, grant, _SAME if effective_at is None else _SAME_BEGINNING
            )
        member.put_grant(grant, at_ms=now_ms)
        return grant

    async def void(self, user_id: object, id: object, *, now: datetime | None = None) -> Decimal:
        """End a grant now; return the credits that were left of it.

        Raises:
            UnknownUserError, UnknownGrantError
            InvalidValueError: it is the allowance of a tier.
        """
        user, now_ms, name = parse_user_id(user_id), self._now_ms(now), _named(id, "grant")
        member = self._stored_member(user)
        member.advance(now_ms)
        grant = member.grant_named(name)
        if grant is None:
            if name in (ALLOWANCE_NAME, str(allowance_id(user.id))):
                expected = "a grant that was given: a tier's allowance goes with the tier"
                raise InvalidValueError("grant", name, expected)
            raise UnknownGrantError(name)
        return credits_of(member.account.void(grant.id, at_ms=now_ms))

    async def reset(
        self, user_id: object, *, preserve_overage: bool = False, now: datetime | None = None
    ) -> None:
        """Let a user's active grants roll over, each within its bounds.

        Raises:
            UnknownUserError
        """
        now_ms = self._now_ms(now)
        member = self._stored_member(parse_user_id(user_id))
        member.end_holds(now_ms)
        member.advance(now_ms - 1)  # what begins or recurs at this very instant does so after it
        moves = member.account.reset(at_ms=now_ms, preserve_overage=preserve_overage)
        member.ledger.moved(moves)

    def _now_ms(self, now: datetime | None) -> int:
        return instant_ms(self._clock() if now is None else parse_instant(now, field="now"))

    def _member(self, user: User, now_ms: int) -> Member | None:
        """The user, moved to now; made on first use where users are."""
        if user.id not in self._members and not self._auto_provision:
            return None
        return self._present(user, now_ms)

    def _stored_member(self, user: User) -> Member:
        """The user as it is, who is not made to be changed."""
        member = self._members.get(user.id)
        if member is None:
            raise UnknownUserError(user.text)
        return member

    def _known_member(self, user: User, now_ms: int) -> Member:
        member = self._member(user, now_ms)
        if member is None:
            raise UnknownUserError(user.text)
        return member

    def _present(self, user: User, now_ms: int) -> Member:
        """The user, moved to now; made, if it has to be."""
        member = self._members.get(user.id)
        if member is None:
            return self._make(user, Calendar("UTC", now_ms, 1), self._rules.default_tier, now_ms)
        member.advance(now_ms)
        return member

    def _make(self, user: User, calendar: Calendar, tier: str, now_ms: int) -> Member:
        member = self._members[user.id] = Member(
            user,
            self._rules,
            calendar,
            tier=tier,
            at_ms=now_ms,
            late_grace_ms=self._late_grace_ms,
        )
        return member


def _wall_clock() -> datetime:
    return datetime.now(UTC)


def _named(value: object, field: str) -> str:
    try:
        return parse_key(value)
    except InvalidValueError as error:
        raise InvalidValueError(field, value, error.expected) from None


def _grant_name(id: object) -> str:
    if id == ALLOWANCE_NAME:
        raise InvalidValueError("id", id, "another name: this is that of the tier's credits")
    return _named(id, "id")


def _ms(value: object, field: str) -> int:
    """An instant that everything can count with, as the service has it."""
    instant = parse_instant(value, field=field)
    if not instant_ms(instant) >= 0 or instant.year > _LAST_YEAR:
        expected = f"an instant from 1970 to the year {_LAST_YEAR}"
        raise InvalidValueError(field, instant.isoformat(), expected)
    return instant_ms(instant)


def _refuse_impossible(grant: Grant) -> None:
    if grant.min_rollover > grant.max_rollover:
        expected = f"at most max_rollover, {credits_of(grant.max_rollover)}"
        raise InvalidValueError("min_rollover", str(credits_of(grant.min_rollover)), expected)
    if type(grant.priority) is not int or not 0 <= grant.priority <= _PRIORITY_MAX:
        expected = f"an integer from 0 to {_PRIORITY_MAX}"
        raise InvalidValueError("priority", grant.priority, expected)
    if grant.kind not in KINDS:
        raise InvalidValueError("kind", grant.kind, f"one of {', '.join(KINDS)}")
    if grant.every is not None and grant.every not in RENEWALS:
        raise InvalidValueError("every", grant.every, f"one of {', '.join(RENEWALS)}")
    if grant.expires_at_ms is not None and grant.expires_at_ms <= grant.effective_at_ms:
        effective_at = instant_text(grant.effective_at_ms)
        expected = f"later than effective_at, {effective_at}"
        raise InvalidValueError("expires_at", instant_text(grant.expires_at_ms), expected)


def _same_or_refused(there: Grant, asked: Grant, fields: Iterable[str]) -> Grant:
    for field in fields:
        if getattr(there, field) != getattr(asked, field):
            expected = f"a new id: this grant exists with another {field.removesuffix('_ms')}"
            raise InvalidValueError("id", asked.name, expected)
    return there
