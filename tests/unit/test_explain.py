from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from quota.account import Account
from quota.burndown import Grant
from quota.explain import Explanation, explanation_of
from quota.held import Held
from quota.period import Calendar, Window, window_at
from quota.rules import Rules
from quota.standing import Profile, counter_line, standing_fields
from quota.values import MICRO, instant_ms, instant_text

AT_MS = instant_ms(datetime(2025, 3, 15, 12, tzinfo=UTC))
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
UTC_CALENDAR = Calendar()
RULES = Rules.from_document(
    {
        "default_tier": "t",
        "features": {"image": {"price": "1.5", "quality": {"high": "2"}}},
        "tiers": {
            "t": {
                "limits": {
                    "image": [
                        {"max": 10, "per": "day"},
                        {"max": 12, "per": "month", "mode": "soft"},
                        {"max": 3, "per": "window:300"},
                    ],
                    "note": {"max": "unlimited", "per": "day"},
                }
            }
        },
    }
)


def grant(number: int, credits: int, **fields: Any) -> Grant:
    base = Grant(
        id=UUID(int=number),
        name=f"g{number}",
        amount=20 * MICRO,
        left=credits * MICRO,
        effective_at_ms=AT_MS - DAY_MS,
        created_at_ms=number,
    )
    return replace(base, **fields)


def explained(
    *grants: Grant,
    day: int = 0,
    feature: str = "image",
    stored: dict[str, Any] | None = None,
    held: Held | None = None,
    tier: str = "t",
    at_ms: int = AT_MS,
) -> Explanation:
    """What is explained to a user who was loaded at AT_MS with these grants, units and hold."""
    account = Account(grants, at_ms=AT_MS)
    if held is not None:
        account.hold(held.key, held.cost, at_ms=AT_MS)
    fields = standing_fields(
        UTC_CALENDAR,
        account,
        [held] if held else [],
        epoch=1,
        tier=tier,
        allowance="-",
        at_ms=AT_MS,
    )
    counted: dict[str, tuple[Window, int]] = {
        per: (window_at(per, AT_MS, UTC_CALENDAR), day) for per in ("day", "month")
    }
    limits = RULES.tiers["t"].limits_of("image") or ()
    fields["f:image"] = counter_line(limits, counted)
    texts = [
        text.encode() if isinstance(text, str) else text
        for field in fields.items()
        for text in field
    ]
    profile = Profile.of(UTC_CALENDAR, account, at_ms=AT_MS).dump().encode()
    return explanation_of([AT_MS, b"1", profile, *texts], RULES, stored, feature, at_ms=at_ms)


def test_every_limit_shows_with_its_headroom_and_the_tightest_binds():
    found = explained(grant(1, 5), day=8)

    assert found.decision.code == "ok"
    assert [(state.per, state.used, state.remaining) for state in found.limits] == [
        ("day", 8, 2), ("month", 8, 4), ("window:300", 0, 3),
    ]  # fmt: skip
    assert found.limits[2].resets_at_ms is None
    assert found.binds == "day"
    assert found.decision.cost == Decimal("1.5")


def test_a_limit_that_denies_binds_and_says_when_to_come_again():
    found = explained(grant(1, 5), day=10)

    assert (found.decision.code, found.binds) == ("limit_exceeded", "day")
    assert found.as_dict()["decision"]["retry_after"] == 12 * 3600


def test_credits_bind_where_they_do_not_suffice():
    found = explained(grant(1, 1))

    assert (found.decision.code, found.binds) == ("insufficient_credits", "credits")


@pytest.mark.parametrize(("feature", "tier"), [("other", "t"), ("image", "gone")])
def test_what_the_tier_does_not_have_is_said(feature: str, tier: str):
    found = explained(feature=feature, tier=tier)

    assert (found.decision.code, found.binds, found.limits) == ("feature_not_in_tier", None, ())


def test_an_unlimited_feature_without_a_price_is_bound_by_nothing():
    found = explained(feature="note")

    assert (found.decision.code, found.binds, found.price) == ("ok", None, None)


def test_grants_that_pay_are_in_burn_order_and_the_others_say_why_they_do_not():
    found = explained(
        grant(1, 5),
        grant(2, 5, priority=0, every="day", effective_at_ms=AT_MS - 30 * HOUR_MS),
        grant(3, 0),
        grant(4, 5, effective_at_ms=AT_MS + HOUR_MS),
        grant(5, 5, expires_at_ms=AT_MS),
        grant(6, 0, voided_at_ms=AT_MS - HOUR_MS),
    )

    assert [(one.grant.name, one.renews_at_ms) for one in found.payers] == [
        ("g2", AT_MS + 18 * HOUR_MS), ("g1", None),
    ]  # fmt: skip
    assert {one.grant.name: one.reason for one in found.others} == {
        "g3": "empty", "g4": "not yet effective", "g5": "expired", "g6": "voided",
    }  # fmt: skip
    assert next(one.grant.left for one in found.others if one.grant.name == "g5") == 0


def test_what_is_held_shows_until_the_hold_is_over():
    held = Held("h", "image", 2, 3 * MICRO, (1_500_000, 1), AT_MS + HOUR_MS, {})

    before = explained(grant(1, 5), held=held)
    after = explained(grant(1, 5), held=held, at_ms=AT_MS + HOUR_MS)

    assert (before.held_micro, before.credits_micro) == (3 * MICRO, 2 * MICRO)
    assert (after.held_micro, after.credits_micro) == (0, 5 * MICRO)


def test_redis_is_put_beside_what_is_stored():
    stored = {
        "credits_micro": 4 * MICRO,
        "used": {"day": 8, "month": 9, "lifetime": 70},
        "entries": [
            {"kind": "burn", "grant": None, "amount_micro": MICRO, "at_ms": AT_MS},
        ],
    }

    found = explained(grant(1, 5), day=8, stored=stored)

    assert found.drifts
    assert found.compared is not None
    assert {one.name: one.drift for one in found.compared} == {
        "image/day": 0, "image/month": -1, "image/window:300": 0, "credits": MICRO,
    }  # fmt: skip
    answer = found.as_dict()
    assert answer["compared"]["credits"] == {"cached": "5", "stored": "4", "drift": "1"}
    assert answer["entries"] == [
        {"kind": "burn", "grant": None, "amount": "1", "at": instant_text(AT_MS)}
    ]


def test_without_an_answer_about_what_is_stored_the_rest_is_explained():
    answer = explained(grant(1, 5), day=1).as_dict()

    assert (answer["entries"], answer["compared"]) == (None, None)
    assert answer["price"] == {"base": "1.5", "format": {}, "quality": {"high": "2"}}
    assert answer["grants"][0]["left"] == "5"
