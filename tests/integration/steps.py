"""Rules and steps for Hypothesis to choose from: tiers of all kinds, and every verb with its fields.

A step says how many minutes pass before it and what else happens, and has instants as minutes from its own.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import strategies as st

from quota.values import AMOUNT_MAX

START = datetime(2025, 3, 29, 22, 0, tzinfo=UTC)  # an hour before clocks go forward in Berlin
FEATURES = ("a", "b", "c")
CALENDAR = ("hour", "day", "week", "month", "year", "cycle", "lifetime")
PERIODS = (*CALENDAR, "window:60", "window:5400")
ZONES = ("UTC", "Europe/Berlin", "Asia/Kathmandu")

limit = st.fixed_dictionaries(
    {
        "max": st.one_of(st.integers(0, 30), st.just("unlimited"), st.just(AMOUNT_MAX)),
        "per": st.sampled_from(PERIODS),
        "mode": st.sampled_from(["hard", "soft"]),
    }
)
limits = st.lists(limit, min_size=1, max_size=4, unique_by=lambda one: (one["per"], one["mode"]))
price = st.fixed_dictionaries(
    {"price": st.sampled_from(["0", "1", "0.333333333333", "2.5", "1000000"])},
    optional={"format": st.just({"video": "4"}), "quality": st.just({"high": "0.1"})},
)
prices = st.dictionaries(st.sampled_from(FEATURES), price, max_size=3)
allowance = st.fixed_dictionaries(
    {
        "amount": st.sampled_from(["20", "7.25", "0.000001"]),
        "every": st.sampled_from(["day", "week", "month"]),
    }
)
tier = st.fixed_dictionaries(
    {
        "overdraft": st.booleans(),
        "limits": st.dictionaries(st.sampled_from([*FEATURES, "*"]), limits, max_size=3),
    },
    optional={"credits": allowance, "features": prices},
)
documents = st.fixed_dictionaries(
    {
        "default_tier": st.just("t"),
        "features": prices,
        "tiers": st.fixed_dictionaries({"t": tier, "u": tier}),
    }
)

keys = st.sampled_from(["k1", "k2", "k3", "k4"])
amounts = st.integers(1, 12)
kind_of = {
    "format": st.sampled_from([None, "video", "text"]),
    "quality": st.sampled_from([None, "high"]),
}
feature = st.sampled_from(FEATURES)
late = st.sampled_from([None, None, None, -4, 5, 70, 26 * 60, 40 * 24 * 60])  # minutes ago


def call(verb: str, **fields: Any) -> st.SearchStrategy[dict[str, Any]]:
    """A step: the verb, the minutes that pass before it, what happens before it, and its fields.

    No minutes: it is taken at the very instant at which the next thing happens by itself.
    """
    return st.fixed_dictionaries(
        {
            "verb": st.just(verb),
            "minutes": st.sampled_from([0, 0, 0, 1, 29, 60, 24 * 60, 40 * 24 * 60, None]),
            "before": st.sampled_from(
                ["nothing", "nothing", "nothing", "apply", "forget", "expire"]
            ),
            "call": st.fixed_dictionaries(fields),
        }
    )


counted = {"feature": feature, "amount": st.one_of(amounts, st.just(AMOUNT_MAX)), **kind_of}
consumes = call("consume", key=keys | st.none(), ago=late, **counted)
checks = call("check", key=keys | st.none(), ago=late, **counted)
records = call("record", key=keys | st.none(), ago=late, **counted)
records_of_several = call(
    "record",
    key=keys | st.none(),
    feature=st.dictionaries(feature, amounts, min_size=1, max_size=3),
)
reserves = call(
    "reserve",
    key=keys,
    feature=feature,
    amount=amounts,
    ttl=st.sampled_from([1, 60, 3600, 86400]),
    **kind_of,
)
commits = call("commit", key=keys, amount=st.none() | st.integers(0, 15))
releases = call("release", key=keys)
refunds = call(
    "refund",
    key=keys,
    amount=st.none() | st.integers(1, 8),
    refund_id=st.sampled_from([None, None, "r1", "r2"]),
)
minutes_off = st.sampled_from([None, -90, 0, 30, 60, 24 * 60, 35 * 24 * 60])
grants = call(
    "grant",
    id=st.sampled_from(["g1", "g2", "g3", "g4"]),
    amount=st.sampled_from(["0", "3", "10.5", "100", "0.333333"]),
    priority=st.integers(0, 2),
    kind=st.sampled_from(["promo", "granted", "purchased"]),
    effective_at=minutes_off,
    expires_at=minutes_off,
    every=st.sampled_from([None, None, "day", "week", "month"]),
    min_rollover=st.sampled_from(["0", "0", "2"]),
    max_rollover=st.sampled_from(["0", "5", "1000"]),
)
voids = call("void", id=st.sampled_from(["g1", "g2", "g3", "g4"]))
resets = call("reset", preserve_overage=st.booleans())
tier_changes = call("set_user", tier=st.sampled_from(["t", "u", "gold"]))
balances = call("balance")
explains = call("explain", feature=feature)

deciding = st.one_of(consumes, consumes, checks, records, records_of_several, balances, explains)
holding = st.one_of(consumes, reserves, reserves, commits, releases, balances, explains)
paying = st.one_of(
    consumes, records, reserves, commits, refunds, grants, grants, voids, resets, balances, explains
)
changing = st.one_of(
    consumes, records, reserves, commits, releases, grants, tier_changes, balances, explains
)


def asked(one: dict[str, Any], number: int, now: datetime) -> dict[str, Any]:
    """The arguments of a step that is taken at *now*."""
    fields = dict(one["call"])
    if "key" in fields:
        fields["key"] = fields["key"] or f"step-{number}"
    ago = fields.pop("ago", None)
    if ago is not None:
        fields["occurred_at"] = now - timedelta(minutes=ago)
    for name in ("effective_at", "expires_at"):
        if fields.get(name) is not None:
            fields[name] = now + timedelta(minutes=fields[name])
    return fields
