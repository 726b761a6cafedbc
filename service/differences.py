"""What Redis has of a user beside what PostgreSQL and the unapplied log come to: where the two differ.

Pure: what was read goes in. Both sides are brought to the same figures at the same instant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from quota.balance import UNREADABLE, seen_of
from quota.explain import CREDITS
from quota.standing import counter_sign
from quota.values import credits_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from quota.burndown import Grant
    from quota.rules import Rules, Tier
    from service.standing import Standing

__all__ = ["Difference", "differences_of", "is_outdated", "unknown_user"]

_OF_CREDITS = ("credits", "hold_credits")


class Difference(NamedTuple):
    """A figure on which the two sides differ; None: that side does not have it, or it can not be read.

    Kinds: `units` of a limit, `credits` (less overage, in micro-credits), `grant` (what is left of it),
    `hold` (units set aside), `hold_credits`, `standing` (anything else, told as text).
    """

    kind: str
    name: str
    feature: str | None
    cached: int | str | None
    stored: int | str | None

    @property
    def drift(self) -> int:
        """Redis minus PostgreSQL and log; 0 where these are no numbers."""
        cached, stored = self.cached or 0, self.stored or 0
        return cached - stored if isinstance(cached, int) and isinstance(stored, int) else 0

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON values; credits are decimals."""
        figures = {"cached": self.cached, "stored": self.stored, "drift": self.drift}
        if self.kind in _OF_CREDITS or self.kind == "grant":
            figures = {
                name: None if micro is None else format(credits_of(int(micro)), "f")
                for name, micro in figures.items()
            }
        return {"kind": self.kind, "what": self.name, "feature": self.feature, **figures}


class _HeldFigures(NamedTuple):
    feature: str
    amount: int
    cost: int
    expires_at_ms: int


@dataclass(slots=True)
class _Figures:
    """One side; what is nothing is left out."""

    tier: str
    calendar: str
    credits: int
    used: Mapping[tuple[str, str], int]  # by feature and period
    grants: Mapping[str, int]
    holds: Mapping[str, _HeldFigures]


def differences_of(
    stored_reply: Sequence[Any], standing: Standing, *, at_ms: int
) -> list[Difference]:
    """Where a reply of read.lua and *standing* differ at *at_ms*; holds that are over by then are ended."""
    standing.end_due(at_ms)
    stored = _stored(standing, at_ms)
    try:
        cached = _cached(stored_reply, standing.tier, at_ms)
    except UNREADABLE as error:
        return [_standing("readable", f"no: {type(error).__name__}", "yes")]
    if (
        cached.tier != stored.tier
    ):  # then the limits are others too, and all the rest follows from it
        return [_standing("tier", cached.tier, stored.tier)]
    return list(_differences(cached, stored))


def unknown_user() -> Difference:
    """A user that Redis has and PostgreSQL does not."""
    return _standing("user", "loaded", "unknown")


def is_outdated(fields: Mapping[bytes, bytes], rules: Rules) -> bool:
    """Whether counters or credits were made by other rules: the next decision loads the user anew."""
    head = fields[b"h"].decode(errors="replace").split(",", 3)
    tier = rules.tiers.get(head[2]) if len(head) == 4 else None
    if tier is None:
        return False
    return head[3] != tier.allowance_text or any(
        not line.startswith(counter_sign(tier.limits_of(name[2:].decode(errors="replace")) or ()))
        for name, line in fields.items()
        if name.startswith(b"f:")
    )


def _differences(cached: _Figures, stored: _Figures) -> Iterator[Difference]:
    if cached.calendar != stored.calendar:
        yield _standing("calendar", cached.calendar, stored.calendar)
    for feature, per in sorted({**cached.used, **stored.used}):
        units = cached.used.get((feature, per), 0), stored.used.get((feature, per), 0)
        if units[0] != units[1]:
            yield Difference("units", f"{feature}/{per}", feature, *units)
    if cached.credits != stored.credits:
        yield Difference("credits", CREDITS, None, cached.credits, stored.credits)
    else:  # else all that differs by it would be told again by grants
        for name in sorted({**cached.grants, **stored.grants}):
            left = cached.grants.get(name, 0), stored.grants.get(name, 0)
            if left[0] != left[1]:
                yield Difference("grant", f"grant {name}", None, *left)
    for key in sorted({**cached.holds, **stored.holds}):
        yield from _of_hold(key, cached.holds.get(key), stored.holds.get(key))


def _of_hold(
    key: str, cached: _HeldFigures | None, stored: _HeldFigures | None
) -> Iterator[Difference]:
    name = f"hold {key}"
    if cached is None or stored is None:
        found = cached or stored
        assert found is not None
        amounts = cached and cached.amount, stored and stored.amount
        yield Difference("hold", name, found.feature, *amounts)
        return
    if cached.feature != stored.feature or cached.expires_at_ms != stored.expires_at_ms:
        yield _standing(
            name,
            f"{cached.feature} until {cached.expires_at_ms}",
            f"{stored.feature} until {stored.expires_at_ms}",
        )
    if cached.amount != stored.amount:
        yield Difference("hold", name, stored.feature, cached.amount, stored.amount)
    if cached.cost != stored.cost:
        yield Difference(
            "hold_credits", f"{name} credits", stored.feature, cached.cost, stored.cost
        )


def _standing(name: str, cached: str, stored: str) -> Difference:
    return Difference("standing", name, None, cached, stored)


def _cached(stored_reply: Sequence[Any], tier: Tier | None, at_ms: int) -> _Figures:
    seen = seen_of(stored_reply, at_ms=at_ms)
    used = {
        (feature, limit.per): seen.state_of(feature, limit).used
        for feature in seen.counters
        for limit in (tier.limits_of(feature) if tier else None) or ()
    }
    return _Figures(
        seen.tier,
        str(seen.calendar),
        seen.account.net(at_ms=at_ms),
        _without_zeros(used),
        _lefts(seen.account.grants(), at_ms),
        {
            held.key: _HeldFigures(held.feature, held.amount, held.cost, held.expires_at_ms)
            for held in seen.holds
        },
    )


def _stored(standing: Standing, at_ms: int) -> _Figures:
    used = {}
    for feature in standing.features():
        counted = standing.counted.of(feature)
        for limit in standing.limits_of(feature):
            window, units = counted.get(limit.per, (None, 0))
            running = window is not None and (window.end_ms is None or window.end_ms > at_ms)
            used[feature, limit.per] = units if running else 0
    return _Figures(
        standing.tier_name,
        str(standing.calendar),
        standing.account.net(at_ms=at_ms),
        _without_zeros(used),
        _lefts(standing.account.grants(), at_ms),
        {
            key: _HeldFigures(hold.feature, hold.amount, hold.cost, hold.expires_ms)
            for key, hold in standing.holds.items()
        },
    )


def _lefts(grants: Iterable[Grant], at_ms: int) -> dict[str, int]:
    return {
        grant.name or str(grant.id): grant.left
        for grant in grants
        if grant.left and (grant.ends_at_ms is None or grant.ends_at_ms > at_ms)
    }


def _without_zeros(used: Mapping[tuple[str, str], int]) -> dict[tuple[str, str], int]:
    return {name: units for name, units in used.items() if units}
