"""Takes credits away from a user, or lets them roll over: the void of a grant, and a credit reset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quota.allowance import ALLOWANCE_NAME, allowance_id
from quota.errors import InvalidValueError, UnknownGrantError
from quota.values import credits_of, instant_text, parse_key
from service.accounts import Entry
from service.changes import changing_credits

if TYPE_CHECKING:
    from datetime import datetime

    from quota.burndown import Grant
    from quota.rules import Rules
    from quota.values import User
    from service.changes import Stores

__all__ = ["Reset", "Void", "reset_credits", "void_grant"]


@dataclass(frozen=True, slots=True)
class Void:
    """What a void came to: *voided* micro-credits were left of the grant; a *note* says why none were."""

    grant: str
    voided: int
    at_ms: int
    note: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "grant": self.grant,
            "voided": _credits(self.voided),
            "at": instant_text(self.at_ms),
            "note": self.note,
        }


@dataclass(frozen=True, slots=True)
class Reset:
    """What a reset came to, in micro-credits: what of the grants lapsed and what a minimum added, what
    of the overage was dropped and what the grants paid of it, and what there is now.
    """

    lapsed: int
    renewed: int
    forgiven: int
    repaid: int
    credits: int
    overage: int
    at_ms: int

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        names = ("lapsed", "renewed", "forgiven", "repaid", "credits", "overage")
        amounts = {name: _credits(getattr(self, name)) for name in names}
        return {**amounts, "at": instant_text(self.at_ms)}


async def void_grant(
    stores: Stores, user: User, rules: Rules, grant: object, *, at: datetime | None = None
) -> Void:
    """End the grant of this name or id: from *at* on it pays nothing. Safe to repeat.

    What it has paid stays paid. A grant that is over already, or was voided before, has 0 to void.

    Raises:
        UnknownUserError, UnknownGrantError, QuotaUnavailableError
        InvalidValueError: it is the allowance of a tier.
    """
    name = _grant_name(grant)
    async with changing_credits(stores, user, rules, at=at) as change:
        stored, at_ms = change.stored, change.at_ms
        found = stored.grant_named(name)
        if found is None:
            if name in (ALLOWANCE_NAME, str(allowance_id(user.id))):
                expected = "a grant that was given: a tier's allowance goes with the tier"
                raise InvalidValueError("grant", name, expected)
            raise UnknownGrantError(name)
        voided = stored.account.void(found.id, at_ms=at_ms)
        if voided:
            stored.entries.append(Entry("voided", found.id, voided, at_ms))
    return Void(found.name or str(found.id), voided, at_ms, _why_nothing(found, voided, at_ms))


async def reset_credits(
    stores: Stores,
    user: User,
    rules: Rules,
    *,
    preserve_overage: bool = False,
    at: datetime | None = None,
) -> Reset:
    """Let each active grant roll over within its bounds; what takes effect at *at* itself counts whole.

    Overage is dropped, or kept with *preserve_overage*: then what rolled over pays it.

    Raises:
        UnknownUserError, QuotaUnavailableError
    """
    # A grant that begins or recurs at the very instant does so after the reset.
    async with changing_credits(stores, user, rules, at=at, before_ms=1) as change:
        account, at_ms = change.stored.account, change.at_ms
        moves = account.reset(at_ms=at_ms, preserve_overage=preserve_overage)
        change.stored.note(moves)
        overage, net = account.overage, account.net(at_ms=at_ms)
    sums = {
        kind: sum(move.amount for move in moves if move.kind == kind)
        for kind in ("lapsed", "renewed", "forgiven", "repaid")
    }
    return Reset(**sums, credits=net + overage, overage=overage, at_ms=at_ms)


def _grant_name(grant: object) -> str:
    try:
        return parse_key(grant)
    except InvalidValueError as error:
        raise InvalidValueError("grant", grant, error.expected) from None


def _why_nothing(grant: Grant, voided: int, at_ms: int) -> str | None:
    if voided:
        return None
    if grant.voided_at_ms is not None:
        return f"it was voided at {instant_text(grant.voided_at_ms)}"
    if grant.expires_at_ms is not None and grant.expires_at_ms <= at_ms:
        return f"it expired at {instant_text(grant.expires_at_ms)}"
    return "nothing was left of it"


def _credits(micro: int) -> str:
    return format(credits_of(micro), "f")
