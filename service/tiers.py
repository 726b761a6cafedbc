"""`tiers.toml`: read, checked, applied to PostgreSQL as a new version, and put in force in Redis.

PostgreSQL has every version that ever was; the highest is in force. A process that dies between
the two stores is healed by the worker, which publishes what PostgreSQL has each second.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from sqlmodel import col, func, select, update

from models import CreditPrice, OutagePolicy, TierLimit, TierVersion, User
from quota.allowance import allowance_changes
from quota.errors import InvalidValueError
from quota.on_outage import on_outage_entry
from quota.rules import ANY_FEATURE, LINES_FORM, UNLIMITED, Allowance, Rules
from quota.scripts import ScriptCaller, script
from quota.values import credits_of, instant_ms, instant_of
from service.database import driver_of, statement

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from pathlib import Path

    import asyncpg
    from sqlmodel.ext.asyncio.session import AsyncSession

    from quota.keys import Keys, ShardKeys
    from quota.rules import AllowanceChanges
    from quota.scripts import Client
    from service.database import Database

__all__ = [
    "apply_rules",
    "publish",
    "publish_shard",
    "read_tiers_file",
    "refuse_orphans",
    "renew_rules",
    "same_rules",
    "stored_allowances",
    "stored_rules",
]

# Of the rules that are stored, a version that Redis has though it should not, else 0; see `service.rules_in_force`.
Ahead = Callable[[Rules | None], Awaitable[int]]
EVERYONE = "*"  # the tier under which credit_prices and outage_policies have what is not overridden
_PUBLISH_TIMEOUT_S = 5.0
_APPLY_LOCK = 7_421_001  # advisory: two `tiers apply` at once would take the same version


def read_tiers_file(path: Path) -> Rules:
    """The rules in a TOML file.

    Raises:
        InvalidValueError: an entry is wrong; *field* is its path. Or the file is not TOML.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidValueError(str(path), str(error), "a TOML file") from None
    return Rules.from_document(document)


async def apply_rules(
    database: Database, rules: Rules, *, at: datetime | None = None, ahead: Ahead | None = None
) -> Rules:
    """Store *rules* as the next version, unless they are what is in force; return what is in force.

    *ahead* tells, while nobody else applies any, a version that has to be passed all the same.
    *at* is for tests and scenarios; the clock is PostgreSQL's.

    Raises:
        InvalidValueError: a tier that users are on is missing.
    """
    async with database.session() as session:
        await session.exec(select(func.pg_advisory_xact_lock(_APPLY_LOCK)))
        stored = await _rules_in(session)
        passed = 0 if ahead is None else await ahead(stored)
        if stored is not None and same_rules(stored, rules) and not passed:
            return stored
        if stored is None:
            # Who came before there were any tiers, with legacy rows, is on the default one.
            newcomers = update(User).where(col(User.tier).not_in(list(rules.tiers)))
            await session.exec(newcomers.values(tier=rules.default_tier))
        await refuse_orphans(session, rules)
        version = max(passed, 0 if stored is None else stored.version) + 1
        return await _store(session, rules, version, at)


async def renew_rules(database: Database, ahead: Ahead) -> Rules | None:
    """Store the rules in force once more, past a version that *ahead* tells; return what is in force."""
    async with database.session() as session:
        await session.exec(select(func.pg_advisory_xact_lock(_APPLY_LOCK)))
        stored = await _rules_in(session)
        passed = await ahead(stored)
        if stored is None or not passed:
            return stored
        return await _store(session, stored, max(passed, stored.version) + 1)


async def _store(
    session: AsyncSession, rules: Rules, version: int, at: datetime | None = None
) -> Rules:
    applied_at_ms = instant_ms(at or (await session.exec(select(func.now()))).one())
    session.add_all(_rows(rules, version, applied_at=instant_of(applied_at_ms)))
    await session.flush()
    allowances = await stored_allowances(await driver_of(session))
    return Rules.from_document(
        dict(rules.document), version=version, applied_at_ms=applied_at_ms, allowances=allowances
    )


async def stored_rules(database: Database) -> Rules | None:
    """The rules in force; None before the first `tiers apply`."""
    async with database.session() as session:
        return await _rules_in(session)


async def publish(redis: Client, keys: Keys, rules: Rules) -> None:
    """Put *rules* in force in every shard; each changes in one step."""
    for shard in keys.shards:
        await publish_shard(redis, shard, rules)


async def publish_shard(redis: Client, shard: ShardKeys, rules: Rules) -> None:
    """Put *rules* in force in one shard, unless it has newer ones."""
    caller = ScriptCaller(redis, timeout_s=_PUBLISH_TIMEOUT_S)
    document = json.dumps(
        {
            "version": rules.version,
            "applied_at_ms": rules.applied_at_ms,
            "document": dict(rules.document),
        }
    )
    lines = [text for line in rules.lines().items() for text in line]
    try:
        await caller.call(
            script("publish"),
            [shard.meta, shard.rules],
            [rules.version, rules.applied_at_ms, document, LINES_FORM, *lines],
        )
    finally:
        await caller.close()


def same_rules(one: Rules, other: Rules) -> bool:
    """Whether they say the same; the order of tiers tells which is the higher one (`service.subscribed`)."""
    return (one.default_tier, list(one.tiers.items()), one.prices, one.on_outage) == (
        other.default_tier,
        list(other.tiers.items()),
        other.prices,
        other.on_outage,
    )


async def refuse_orphans(session: AsyncSession, rules: Rules) -> None:
    """Refuse *rules* without a tier that users are on.

    Raises:
        InvalidValueError: *field* is the path of that tier.
    """
    gone = (
        select(User.tier, func.count())
        .where(col(User.tier).not_in(list(rules.tiers)))
        .group_by(col(User.tier))
    )
    for tier, users in (await session.exec(gone)).all():
        raise InvalidValueError(
            f"tiers.{tier}",
            None,
            f"the tier to stay, because {users} users are on it (move them first)",
        )


def _rows(rules: Rules, version: int, *, applied_at: datetime) -> list[Any]:
    rows: list[Any] = []
    for place, tier in enumerate(rules.tiers.values()):
        rows.append(
            TierVersion(
                version=version,
                name=tier.name,
                is_default=tier.name == rules.default_tier,
                overdraft=tier.overdraft,
                allowance_micro=tier.allowance.amount if tier.allowance else None,
                allowance_every=tier.allowance.every if tier.allowance else None,
                thresholds=list(tier.thresholds),
                applied_at=applied_at,
                position=place,
            )
        )
        for feature, limits in tier.limits.items():
            for position, limit in enumerate(limits):
                rows.append(
                    TierLimit(
                        version=version,
                        tier=tier.name,
                        feature=feature,
                        position=position,
                        per=limit.per,
                        mode=limit.mode,
                        max=limit.max,
                    )
                )
    for name, prices in [
        (EVERYONE, rules.prices),
        *((tier.name, tier.prices) for tier in rules.tiers.values()),
    ]:
        for feature, price in prices.items():
            rows.append(
                CreditPrice(
                    version=version,
                    tier=name,
                    feature=feature,
                    price=price.base,
                    format=_texts(price.formats),
                    quality=_texts(price.qualities),
                )
            )
    return [*rows, *_outage_rows(rules, version)]


def _outage_rows(rules: Rules, version: int) -> list[OutagePolicy]:
    by_tier = {EVERYONE: dict(rules.on_outage)}
    for tier in rules.tiers.values():
        by_tier[tier.name] = dict(tier.on_outage)
        if tier.on_outage_any is not None:
            by_tier[tier.name][ANY_FEATURE] = tier.on_outage_any
    return [
        OutagePolicy(version=version, tier=tier, feature=feature, max=units)
        for tier, policies in by_tier.items()
        for feature, units in policies.items()
    ]


def _texts(multipliers: Any) -> dict[str, str]:
    return {name: _plain(multiplier) for name, multiplier in multipliers.items()}


def _plain(number: Decimal) -> str:
    text = format(number, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


async def _rules_in(session: AsyncSession) -> Rules | None:
    version: int | None = (await session.exec(select(func.max(TierVersion.version)))).one()
    if version is None:
        return None
    found = select(TierVersion).where(TierVersion.version == version)
    tiers = (await session.exec(found.order_by(col(TierVersion.position)))).all()
    limits = await session.exec(
        select(TierLimit)
        .where(TierLimit.version == version)
        .order_by(col(TierLimit.tier), col(TierLimit.feature), col(TierLimit.position))
    )
    prices = await session.exec(select(CreditPrice).where(CreditPrice.version == version))
    policies = await session.exec(select(OutagePolicy).where(OutagePolicy.version == version))
    document: dict[str, Any] = {
        "default_tier": next(tier.name for tier in tiers if tier.is_default),
        "features": {},
        "tiers": {tier.name: _tier_table(tier) for tier in tiers},
    }
    for limit in limits:
        named = document["tiers"][limit.tier]["limits"]
        most = UNLIMITED if limit.max is None else limit.max
        named.setdefault(limit.feature, []).append(
            {"max": most, "per": limit.per, "mode": limit.mode}
        )
    for price in prices:
        top = document if price.tier == EVERYONE else document["tiers"][price.tier]
        top["features"][price.feature] = {
            "price": _plain(price.price),
            "format": price.format,
            "quality": price.quality,
        }
    for policy in policies:
        top = document if policy.tier == EVERYONE else document["tiers"][policy.tier]
        if policy.feature != ANY_FEATURE:
            top = top["features"].setdefault(policy.feature, {})
        top["on_outage"] = on_outage_entry(policy.max)
    applied_at_ms = max(instant_ms(tier.applied_at) for tier in tiers)
    return Rules.from_document(
        document,
        version=version,
        applied_at_ms=applied_at_ms,
        allowances=await stored_allowances(await driver_of(session)),
    )


async def stored_allowances(
    connection: asyncpg.Connection[Any],
) -> Mapping[str, AllowanceChanges]:
    """What was each tier's allowance, and from when on: what waits in the log may be of then."""
    return allowance_changes(
        (
            row["applied_at_ms"],
            row["name"],
            None
            if row["allowance_micro"] is None
            else Allowance(row["allowance_micro"], row["allowance_every"]),
        )
        for row in await connection.fetch(statement("service", "allowances"))
    )


def _tier_table(tier: TierVersion) -> dict[str, Any]:
    table: dict[str, Any] = {
        "overdraft": tier.overdraft,
        "limits": {},
        "features": {},
        "alerts": {"thresholds": list(tier.thresholds)},
    }
    if tier.allowance_micro is not None:
        table["credits"] = {
            "amount": format(credits_of(tier.allowance_micro), "f"),
            "every": tier.allowance_every,
        }
    return table
