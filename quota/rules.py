"""Tiers: which limits, prices, allowance and thresholds each name stands for.

One document describes them all, whether it came from a `tiers.toml`, a scenario or PostgreSQL.
It is read whole or refused whole, with the path of the entry that is wrong, and a version names it,
so that no decision is made with half of one document and half of the next.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from quota.decision import HARD, SOFT, Limit
from quota.errors import InvalidValueError
from quota.on_outage import DENY, parse_on_outage
from quota.period import parse_per
from quota.prices import Price, cost_of, parse_price, unit_of
from quota.values import AMOUNT_MAX, parse_credits, parse_feature, parse_key

__all__ = [
    "ANY_FEATURE",
    "LINES_FORM",
    "UNLIMITED",
    "Allowance",
    "AllowanceChanges",
    "Rules",
    "Tier",
]

LINES_FORM = 2  # of `Rules.lines`: a Redis that has them in another one gets them again
ANY_FEATURE = "*"
UNLIMITED = "unlimited"
_ALLOWANCE_EVERY = ("day", "week", "month")
_THRESHOLDS_DEFAULT = (80, 100)
_THRESHOLD_MAX = 1000  # percent: a soft limit can be passed ten times over
_LIMITS_MAX = 16  # of one feature: each costs a read, a test and a write in every decision
_TIER = re.compile(r"[a-z][a-z0-9_-]{0,49}")

# Redis and the script know periods by a letter, to keep what is stored for every key short.
_PER_CODES = {
    "hour": "h",
    "day": "d",
    "week": "w",
    "month": "m",
    "year": "y",
    "cycle": "c",
    "lifetime": "l",
}
_PER_NAMES = {code: per for per, code in _PER_CODES.items()}


def per_code(per: str) -> str:
    """The letter that Redis knows a period by; `window:300` is `s300`."""
    return _PER_CODES.get(per) or "s" + per.partition(":")[2]


def per_name(code: str) -> str:
    """The inverse of `per_code`."""
    return _PER_NAMES.get(code) or "window:" + code[1:]


@dataclass(frozen=True, slots=True)
class Allowance:
    """Credits a tier gives by itself: micro-credits, set back to that amount every period."""

    amount: int
    every: str


# What a tier's allowance was, and from which instant in ms on: ascending, the first from 0 on.
AllowanceChanges = tuple[tuple[int, Allowance | None], ...]


@dataclass(frozen=True, slots=True)
class Tier:
    """A named set of limits, prices, allowance and thresholds.

    *on_outage* is by feature, and *on_outage_any* of those that it does not name.
    """

    name: str
    limits: Mapping[str, tuple[Limit, ...]]
    prices: Mapping[str, Price] = field(default_factory=dict)
    allowance: Allowance | None = None
    thresholds: tuple[int, ...] = _THRESHOLDS_DEFAULT
    overdraft: bool = False
    on_outage: Mapping[str, int] = field(default_factory=dict)
    on_outage_any: int | None = None

    @property
    def allowance_text(self) -> str:
        """The allowance as heads and lines in Redis have it: `micro/every`, or `-` without one."""
        found = self.allowance
        return "-" if found is None else f"{found.amount}/{found.every}"

    def limits_of(self, feature: str) -> tuple[Limit, ...] | None:
        """The limits on *feature*, else those on any feature, else None: not in this tier."""
        return self.limits.get(feature) or self.limits.get(ANY_FEATURE)


@dataclass(frozen=True, slots=True)
class Rules:
    """Every tier and price, under one version.

    `applied_at_ms` is when that version was applied; 0 when it is not known. `allowances` has the changes
    of each tier's allowance up to that version, if it had one (`quota.allowance`); None where they are not
    known. What the rules say does not depend on either, so they are no part of their equality.
    """

    default_tier: str
    tiers: Mapping[str, Tier]
    prices: Mapping[str, Price]
    document: Mapping[str, Any]
    version: int = 0
    applied_at_ms: int = field(default=0, compare=False)
    on_outage: Mapping[str, int] = field(default_factory=dict)
    allowances: Mapping[str, AllowanceChanges] | None = field(default=None, compare=False)
    _costs: dict[tuple[str, str | None, str | None, int], str] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @classmethod
    def from_document(
        cls,
        document: object,
        *,
        version: int = 0,
        applied_at_ms: int = 0,
        allowances: Mapping[str, AllowanceChanges] | None = None,
    ) -> Rules:
        """Read the content of a `tiers.toml` (DESIGN 10).

        Raises:
            InvalidValueError: *field* is the path of the entry, as `tiers.free.limits.tokens[0].max`.
        """
        top = _table(document, "tiers file", {"default_tier", "features", "tiers"})
        prices, on_outage = _features(top, "features", {})
        named = _table(top.get("tiers"), "tiers")
        tiers = {name: _tier(name, entry, prices) for name, entry in named.items()}
        default = top.get("default_tier")
        if not isinstance(default, str) or default not in tiers:
            raise InvalidValueError(
                "default_tier", default, f"one of the tiers: {', '.join(tiers)}"
            )
        return cls(default, tiers, prices, top, version, applied_at_ms, on_outage, allowances)

    @classmethod
    def published(cls, text: str | bytes) -> Rules | None:
        """The rules as they are in Redis; None where they can not be read.

        What stands there may be damaged in any way. Whoever asks has them published anew.
        """
        try:
            stored = json.loads(text)
            version, applied_at_ms = stored["version"], stored.get("applied_at_ms", 0)
            if type(version) is int and type(applied_at_ms) is int:
                return cls.from_document(
                    stored["document"], version=version, applied_at_ms=applied_at_ms
                )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            pass  # the first is of JSON, of UTF-8, and of rules that are refused
        return None

    @property
    def allow_on_outage(self) -> bool:
        """Whether anything at all may be used while Redis can not be reached."""
        tiers = self.tiers.values()
        found = [*self.on_outage.values(), *(tier.on_outage_any or DENY for tier in tiers)]
        return any(found) or any(any(tier.on_outage.values()) for tier in tiers)

    def outage_max(self, tier: Tier, feature: str, *, forced: bool) -> int:
        """Units of *feature* that a process may admit for a user of *tier* without Redis; 0 for none.

        The tier's own word on the feature counts, else its word on all, else everyone's on the feature.
        Not more than the tightest hard limit, so that nobody doubles it, unless it is *forced*.
        """
        units = tier.on_outage.get(feature, tier.on_outage_any)
        if units is None:
            units = self.on_outage.get(feature, DENY)
        if forced:
            return units
        limits = tier.limits_of(feature)
        if limits is None:
            return DENY
        return min(
            [units, *(one.max for one in limits if one.mode == HARD and one.max is not None)]
        )

    def allowances_of(self, name: str) -> AllowanceChanges:
        """The changes of a tier's allowance; where they are not known, it was never another one."""
        if self.allowances is not None:
            return self.allowances.get(name, ())
        tier = self.tiers.get(name)
        return () if tier is None or tier.allowance is None else ((0, tier.allowance),)

    def price_of(self, tier: str, feature: str) -> Price | None:
        """The tier's own price of *feature*, else everyone's; None: it asks no credits."""
        own = self.tiers[tier].prices if tier in self.tiers else {}
        return own.get(feature) or self.prices.get(feature)

    def cost(
        self, tier: str, feature: str, *, amount: int, format: str | None, quality: str | None
    ) -> int:
        """Micro-credits that *amount* units cost a user of *tier*.

        Raises:
            InvalidValueError: they are more than anyone can have.
        """
        price = self.price_of(tier, feature)
        return cost_of(price, amount=amount, format=format, quality=quality)

    def cost_spec(
        self, feature: str, *, amount: int, format: str | None, quality: str | None
    ) -> str:
        """The cost as the admit script takes it: for every tier, then `tier=` where one differs.

        The caller need not know the user's tier, and a change of tier needs no second try. Nothing
        stands for more than anyone can have: the script refuses it to who is on such a tier, and to no one else.
        """
        asked = (feature, format, quality, amount)
        spec = self._costs.get(asked)
        if spec is None:
            spec = _cost_text(self.prices.get(feature), amount, format, quality)
            own = [
                f"{tier.name}={_cost_text(tier.prices[feature], amount, format, quality)},"
                for tier in self.tiers.values()
                if feature in tier.prices
            ]
            if own:
                spec += "," + "".join(own)
            if len(self._costs) >= _COSTS_CACHED_MAX:
                self._costs.clear()
            self._costs[asked] = spec
        return spec

    def unit_spec(self, feature: str, *, format: str | None, quality: str | None) -> str:
        """The price of a unit as the admit script takes it, in the form of `cost_spec`."""
        spec = _unit_text(self.prices.get(feature), format, quality)
        own = [
            f"{tier.name}={_unit_text(tier.prices[feature], format, quality)},"
            for tier in self.tiers.values()
            if feature in tier.prices
        ]
        return f"{spec},{''.join(own)}" if own else spec

    def lines(self) -> dict[str, str]:
        """The limits as the admit script reads them: `tier/feature` to `per,mode,max;` of each.

        Each tier has a line of its own name: `o` when it may overdraw, else `-`, then its allowance.
        """
        lines = {
            f"{tier.name}/{feature}": "".join(map(_limit_line, limits))
            for tier in self.tiers.values()
            for feature, limits in tier.limits.items()
        }
        for tier in self.tiers.values():
            lines[tier.name] = f"{'o' if tier.overdraft else '-'};{tier.allowance_text}"
        return lines


_COSTS_CACHED_MAX = 10_000  # feature x format x quality x amount seen lately; cleared when full


def _cost_text(price: Price | None, amount: int, format: str | None, quality: str | None) -> str:
    try:
        return str(cost_of(price, amount=amount, format=format, quality=quality))
    except InvalidValueError:
        return ""


def _unit_text(price: Price | None, format: str | None, quality: str | None) -> str:
    numerator, denominator = unit_of(price, format=format, quality=quality)
    return f"{numerator}/{denominator}"


def _limit_line(limit: Limit) -> str:
    return f"{per_code(limit.per)},{limit.mode[0]},{-1 if limit.max is None else limit.max};"


def _table(found: object, path: str, known: set[str] | None = None) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise InvalidValueError(path, found, "a table")
    for name in found:
        if known is not None and name not in known:
            raise InvalidValueError(
                f"{path}.{name}" if path != "tiers file" else str(name),
                name,
                f"one of {', '.join(sorted(known))}",
            )
    return found


def _feature(name: object, path: str) -> str:
    try:
        return parse_feature(name)
    except InvalidValueError as error:
        raise InvalidValueError(path, name, error.expected) from None


def _features(
    top: dict[str, Any], path: str, inherited: Mapping[str, Price]
) -> tuple[dict[str, Price], dict[str, int]]:
    """What a table of features says: prices, and what may be used in an outage."""
    prices, on_outage = {}, {}
    for name, entry in _table(top.get("features", {}), path).items():
        here = f"{path}.{name}"
        feature, table = _feature(name, here), _table(entry, here, {*_PRICE, "on_outage"})
        if "on_outage" in table:
            on_outage[feature] = parse_on_outage(table["on_outage"], f"{here}.on_outage")
        if "on_outage" not in table or not _PRICE.isdisjoint(table):
            prices[feature] = _price(table, here, inherited.get(feature))
    return prices, on_outage


_PRICE = {"price", "format", "quality"}


def _price(table: dict[str, Any], path: str, inherited: Price | None) -> Price:
    if "price" in table:
        base = parse_price(table["price"], field=f"{path}.price")
    elif inherited is not None:
        base = inherited.base
    else:
        raise InvalidValueError(f"{path}.price", None, 'a price such as "1.5"')
    return Price(
        base,
        _multipliers(table, "format", path, inherited.formats if inherited else {}),
        _multipliers(table, "quality", path, inherited.qualities if inherited else {}),
    )


def _multipliers(
    table: dict[str, Any], name: str, path: str, inherited: Mapping[str, Any]
) -> Mapping[str, Any]:
    if name not in table:
        return inherited
    path = f"{path}.{name}"
    return {
        _multiplied(key, f"{path}.{key}"): parse_price(value, field=f"{path}.{key}")
        for key, value in _table(table[name], path).items()
    }


def _multiplied(name: object, path: str) -> str:
    """The name of a format or quality, which no record could bear if it were wrong."""
    try:
        return parse_key(name)
    except InvalidValueError as error:
        raise InvalidValueError(path, name, error.expected) from None


def _tier(name: str, entry: object, prices: Mapping[str, Price]) -> Tier:
    path = f"tiers.{name}"
    if not _TIER.fullmatch(name):
        raise InvalidValueError(path, name, "a tier name: a letter, then up to 49 of a-z 0-9 _ -")
    table = _table(
        entry, path, {"credits", "limits", "alerts", "on_outage", "overdraft", "features"}
    )
    overdraft = table.get("overdraft", False)
    if not isinstance(overdraft, bool):
        raise InvalidValueError(f"{path}.overdraft", overdraft, "true or false")
    limits = {
        feature
        if feature == ANY_FEATURE
        else _feature(feature, f"{path}.limits.{feature}"): _limits(
            found, f"{path}.limits.{feature}"
        )
        for feature, found in _table(table.get("limits", {}), f"{path}.limits").items()
    }
    own, on_outage = _features(table, f"{path}.features", prices)
    on_outage_any = None
    if "on_outage" in table:
        on_outage_any = parse_on_outage(table["on_outage"], f"{path}.on_outage")
    return Tier(
        name,
        limits,
        own,
        _allowance(table, path),
        _thresholds(table, path),
        overdraft,
        on_outage,
        on_outage_any,
    )


def _limits(found: object, path: str) -> tuple[Limit, ...]:
    entries = found if isinstance(found, list) else [found]
    if not 1 <= len(entries) <= _LIMITS_MAX:
        raise InvalidValueError(path, found, f"1 to {_LIMITS_MAX} limits")
    limits = tuple(
        _limit(entry, f"{path}[{place}]" if isinstance(found, list) else path)
        for place, entry in enumerate(entries)
    )
    if len({(limit.per, limit.mode) for limit in limits}) < len(limits):
        raise InvalidValueError(path, found, "one limit a period and mode")
    return limits


def _limit(entry: object, path: str) -> Limit:
    table = _table(entry, path, {"max", "per", "mode"})
    most, mode = table.get("max"), table.get("mode", HARD)
    if most != UNLIMITED and (type(most) is not int or not 0 <= most <= AMOUNT_MAX):
        raise InvalidValueError(
            f"{path}.max", most, f'an integer from 0 to {AMOUNT_MAX}, or "{UNLIMITED}"'
        )
    if mode not in (HARD, SOFT):
        raise InvalidValueError(f"{path}.mode", mode, f'"{HARD}" or "{SOFT}"')
    per = parse_per(table.get("per"), field=f"{path}.per")
    return Limit(per, mode, None if most == UNLIMITED else most)


def _allowance(tier: dict[str, Any], path: str) -> Allowance | None:
    if "credits" not in tier:
        return None
    table = _table(tier["credits"], f"{path}.credits", {"amount", "every"})
    every = table.get("every")
    if every not in _ALLOWANCE_EVERY:
        raise InvalidValueError(
            f"{path}.credits.every", every, f"one of {', '.join(_ALLOWANCE_EVERY)}"
        )
    return Allowance(parse_credits(table.get("amount"), field=f"{path}.credits.amount"), every)


def _thresholds(tier: dict[str, Any], path: str) -> tuple[int, ...]:
    if "alerts" not in tier:
        return _THRESHOLDS_DEFAULT
    path = f"{path}.alerts"
    found = _table(tier["alerts"], path, {"thresholds"}).get(
        "thresholds", list(_THRESHOLDS_DEFAULT)
    )
    path += ".thresholds"
    if not isinstance(found, list):
        raise InvalidValueError(path, found, "a list of percents")
    for place, percent in enumerate(found):
        if type(percent) is not int or not 1 <= percent <= _THRESHOLD_MAX:
            raise InvalidValueError(
                f"{path}[{place}]", percent, f"a percent from 1 to {_THRESHOLD_MAX}"
            )
    return tuple(sorted(set(found)))
