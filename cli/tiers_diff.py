"""What differs between two sets of rules, entry by entry, under the paths of a `tiers.toml`."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from quota.decision import SOFT
from quota.on_outage import DENY
from quota.rules import UNLIMITED
from quota.values import credits_of

if TYPE_CHECKING:
    from decimal import Decimal

    from quota.prices import Price
    from quota.rules import Rules, Tier

__all__ = ["Change", "changes"]


class Change(NamedTuple):
    """One entry; None where it is not there."""

    path: str
    before: str | None
    after: str | None


def changes(before: Rules | None, after: Rules) -> list[Change]:
    """Every entry of which *before* and *after* say different things, as the new file orders it."""
    old, new = {} if before is None else _entries(before), _entries(after)
    paths = [*new, *(path for path in old if path not in new)]
    found = [
        Change(path, old.get(path), new.get(path))
        for path in paths
        if old.get(path) != new.get(path)
    ]
    return [*found, *_order(before, after)]


def _order(before: Rules | None, after: Rules) -> list[Change]:
    """Tiers that change places: which of two is the higher one is their order in the file."""
    old = [] if before is None else [name for name in before.tiers if name in after.tiers]
    new = [name for name in after.tiers if name in old]
    return [] if old == new else [Change("tiers", ", ".join(old), ", ".join(new))]


def _entries(rules: Rules) -> dict[str, str]:
    """Each entry's path and value; a limit's path ends in its period, as in a balance."""
    entries = {"default_tier": rules.default_tier}
    for feature, price in rules.prices.items():
        entries |= _price_entries(f"features.{feature}", price)
    for feature, units in rules.on_outage.items():
        entries[f"features.{feature}.on_outage"] = _on_outage(units)
    for tier in rules.tiers.values():
        entries |= _tier_entries(tier)
    return entries


def _tier_entries(tier: Tier) -> dict[str, str]:
    path = f"tiers.{tier.name}"
    entries = {
        f"{path}.overdraft": str(tier.overdraft).lower(),
        f"{path}.alerts.thresholds": ", ".join(map(str, tier.thresholds)) or "none",
    }
    if tier.allowance is not None:
        amount = f"{credits_of(tier.allowance.amount):f}"
        entries[f"{path}.credits"] = f"{amount} every {tier.allowance.every}"
    for feature, limits in tier.limits.items():
        for limit in limits:
            mode = " (soft)" if limit.mode == SOFT else ""
            most = UNLIMITED if limit.max is None else str(limit.max)
            entries[f"{path}.limits.{feature}/{limit.per}{mode}"] = most
    for feature, price in tier.prices.items():
        entries |= _price_entries(f"{path}.features.{feature}", price)
    if tier.on_outage_any is not None:
        entries[f"{path}.on_outage"] = _on_outage(tier.on_outage_any)
    for feature, units in tier.on_outage.items():
        entries[f"{path}.features.{feature}.on_outage"] = _on_outage(units)
    return entries


def _on_outage(units: int) -> str:
    return "deny" if units == DENY else f"allow {units}"


def _price_entries(path: str, price: Price) -> dict[str, str]:
    entries = {f"{path}.price": _plain(price.base)}
    for kind, multipliers in (("format", price.formats), ("quality", price.qualities)):
        for name, multiplier in multipliers.items():
            entries[f"{path}.{kind}.{name}"] = _plain(multiplier)
    return entries


def _plain(number: Decimal) -> str:
    """Without the zeros that say nothing: "1.0" and "1" are one price."""
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
