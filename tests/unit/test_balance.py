from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from quota.account import Account
from quota.allowance import allowance_grant
from quota.balance import Balance, balance_of
from quota.burndown import Grant
from quota.decision import LimitState
from quota.held import Held
from quota.period import Calendar, Window, window_at
from quota.rules import Rules
from quota.standing import Profile, counter_line, head_text, hold_fields, windows_text
from quota.values import MICRO, instant_ms

if TYPE_CHECKING:
    from collections.abc import Sequence

AT_MS = instant_ms(datetime(2025, 3, 15, 12, tzinfo=UTC))
DAY_MS = 24 * 3600 * 1000
BERLIN = Calendar("Europe/Berlin")
RULES = Rules.from_document(
    {
        "default_tier": "t",
        "tiers": {
            "t": {
                "limits": {
                    "tokens": [
                        {"max": 10, "per": "day"},
                        {"max": 50, "per": "month", "mode": "soft"},
                    ],
                    "calls": {"max": 3, "per": "window:300"},
                    "notes": {"max": "unlimited", "per": "lifetime"},
                    "*": {"max": 7, "per": "day"},
                }
            }
        },
    }
)
ALLOWING = Rules.from_document(
    {"default_tier": "t", "tiers": {"t": {"credits": {"amount": "10", "every": "day"}}}}
)
FIRST = Grant(
    id=UUID(int=1),
    name="first",
    amount=20 * MICRO,
    left=20 * MICRO,
    effective_at_ms=0,
    expires_at_ms=AT_MS + DAY_MS,
    created_at_ms=0,
)
LATER = replace(
    FIRST,
    id=UUID(int=2),
    name=None,
    left=5 * MICRO,
    effective_at_ms=AT_MS + 2 * DAY_MS,
    expires_at_ms=None,
)


def stored(
    used: dict[str, dict[str, tuple[Window, int]]],
    *,
    burnt: int = 0,
    tier: str = "t",
    grants: Sequence[Grant] = (FIRST, LATER),
    held: Held | None = None,
) -> list[Any]:
    """The reply of read.lua for a user who was loaded at AT_MS and then burnt some credits."""
    account = Account(grants)
    if held is not None:
        account.hold(held.key, held.cost, at_ms=AT_MS)
    profile = Profile.of(BERLIN, account, at_ms=AT_MS)
    until_ms = account.valid_until_ms(at_ms=AT_MS)
    fields: list[str | bytes] = [
        "h",
        head_text(epoch=1, valid_until_ms=until_ms, tier=tier, allowance="-"),
    ]
    fields += ["c", str(profile.net - burnt), "w", windows_text(BERLIN, AT_MS)]
    for feature, counted in used.items():
        limits = RULES.tiers["t"].limits_of(feature) or ()
        fields += [f"f:{feature}", counter_line(limits, counted)]
    for name, text in hold_fields(account, [held] if held else []).items():
        fields += [name, text]
    texts = [field.encode() if isinstance(field, str) else field for field in fields]
    return [AT_MS, b"1", profile.dump().encode(), *texts]


def window(per: str, at_ms: int = AT_MS) -> Window:
    return window_at(per, at_ms, BERLIN)


def tokens(day: int, month: int) -> dict[str, dict[str, tuple[Window, int]]]:
    return {"tokens": {"day": (window("day"), day), "month": (window("month"), month)}}


def test_every_limit_of_the_tier_shows_and_those_on_any_feature_show_where_used():
    used = tokens(4, 40) | {"other": {"day": (window("day"), 2)}}

    limits = balance_of(stored(used), RULES, at_ms=AT_MS).limits

    assert limits["tokens/day"] == LimitState("day", "hard", 4, 10, 6, window("day").end_ms)
    assert limits["tokens/month"] == LimitState("month", "soft", 40, 50, 10, window("month").end_ms)
    assert limits["other/day"] == LimitState("day", "hard", 2, 7, 5, window("day").end_ms)
    assert limits["notes/lifetime"] == LimitState("lifetime", "hard", 0, None, None, None)
    assert limits["calls/window:300"] == LimitState("window:300", "hard", 0, 3, 3, None)
    assert set(limits) == {
        "tokens/day", "tokens/month", "other/day", "notes/lifetime", "calls/window:300",
    }  # fmt: skip


def test_a_limit_that_is_passed_has_nothing_remaining():
    limits = balance_of(stored(tokens(25, 80)), RULES, at_ms=AT_MS).limits

    assert limits["tokens/day"].remaining == limits["tokens/month"].remaining == 0


def test_a_period_that_is_over_counts_nothing_and_the_one_that_runs_is_told():
    tomorrow_ms = AT_MS + DAY_MS
    open_until_ms = AT_MS + 1000
    used = tokens(4, 40) | {"calls": {"window:300": (Window(0, open_until_ms), 3)}}

    limits = balance_of(stored(used), RULES, at_ms=tomorrow_ms).limits

    assert limits["tokens/day"].used == 0
    assert limits["tokens/day"].resets_at_ms == window("day", tomorrow_ms).end_ms
    assert limits["tokens/month"].used == 40
    assert limits["calls/window:300"] == LimitState("window:300", "hard", 0, 3, 3, None)


def test_a_window_that_runs_says_when_it_ends():
    used = {"calls": {"window:300": (Window(0, AT_MS + 1000), 3)}}

    state = balance_of(stored(used), RULES, at_ms=AT_MS).limits["calls/window:300"]

    assert (state.used, state.remaining, state.resets_at_ms) == (3, 0, AT_MS + 1000)


def test_a_tier_that_is_gone_has_no_limits():
    assert balance_of(stored(tokens(1, 1), tier="gone"), RULES, at_ms=AT_MS).limits == {}


def test_credits_burnt_since_loading_are_taken_from_the_grants():
    balance = balance_of(stored({}, burnt=7_500_000), RULES, at_ms=AT_MS)

    assert (balance.credits, balance.overage) == (Decimal("12.5"), Decimal(0))
    assert [grant.left for grant in balance.grants] == [12_500_000, 5 * MICRO]


def test_a_balance_later_counts_what_expired_and_what_began():
    later_ms = AT_MS + 2 * DAY_MS

    assert balance_of(stored({}), RULES, at_ms=later_ms).credits == Decimal(5)


def test_overage_shows_until_the_next_grant_begins():
    burnt = 22 * MICRO

    before = balance_of(stored({}, burnt=burnt), RULES, at_ms=AT_MS)
    after = balance_of(stored({}, burnt=burnt), RULES, at_ms=AT_MS + 2 * DAY_MS)

    assert (before.credits, before.overage) == (Decimal(0), Decimal(2))
    assert (after.credits, after.overage) == (Decimal(3), Decimal(0))


def test_nothing_is_left_of_a_grant_that_is_over():
    balance = balance_of(stored({}), RULES, at_ms=AT_MS + DAY_MS)

    assert [(grant.name, grant.left) for grant in balance.grants] == [
        ("first", 0),
        (None, 5_000_000),
    ]


def test_a_hold_shows_until_it_is_over_and_its_units_and_credits_come_back_then():
    held = Held(
        "h", "tokens", 3, 6 * MICRO, (2 * MICRO, 1), AT_MS + 1000,
        {per: window(per).end_ms or 0 for per in ("day", "month")},
    )  # fmt: skip

    before = balance_of(stored(tokens(4, 40), held=held), RULES, at_ms=AT_MS + 999)
    after = balance_of(stored(tokens(4, 40), held=held), RULES, at_ms=AT_MS + 1000)

    assert before.as_dict()["holds"] == {
        "h": {"feature": "tokens", "amount": 3, "expires_at": "2025-03-15T12:00:01Z"}
    }
    assert (before.credits, before.limits["tokens/day"].used) == (Decimal(14), 4)
    assert (after.credits, after.limits["tokens/day"].used) == (Decimal(20), 1)
    assert after.holds == {}


def test_an_allowance_goes_by_that_name_and_is_set_back_when_it_is_due():
    allowance = allowance_grant(
        UUID(int=9), ALLOWING.allowances_of("t"), None, anchor_ms=AT_MS, at_ms=AT_MS
    )
    assert allowance is not None

    at_first = balance_of(stored({}, grants=[allowance], burnt=8 * MICRO), RULES, at_ms=AT_MS)
    next_day = balance_of(
        stored({}, grants=[allowance], burnt=8 * MICRO), RULES, at_ms=AT_MS + DAY_MS
    )

    assert at_first.as_dict()["grants"] == {"allowance": "2"}
    assert next_day.as_dict()["grants"] == {"allowance": "10"}


@given(burnt=st.integers(0, 60 * MICRO), days=st.integers(0, 5))
def test_what_was_granted_is_burnt_or_left_less_overage(burnt: int, days: int):
    balance = balance_of(stored({}, burnt=burnt), RULES, at_ms=AT_MS + days * DAY_MS)

    left = sum(grant.left for grant in balance.grants)
    expired = max(0, 20 * MICRO - burnt) if days else 0  # of FIRST, after a day
    assert burnt + left + expired - balance.overage_micro == 25 * MICRO
    assert balance.credits_micro >= 0
    assert balance.overage_micro >= 0


def test_as_json_decimals_are_text_instants_are_utc_and_a_nameless_grant_goes_by_its_id():
    limits = {"tokens/day": LimitState("day", "hard", 4, 10, 6, AT_MS)}
    balance = Balance("t", 2_500_000, 1, (FIRST, LATER), limits, AT_MS)

    assert balance.as_dict() == {
        "tier": "t",
        "credits": "2.5",
        "overage": "0.000001",
        "grants": {"first": "20", str(LATER.id): "5"},
        "limits": {
            "tokens/day": {
                "used": 4,
                "max": 10,
                "mode": "hard",
                "remaining": 6,
                "resets_at": "2025-03-15T12:00:00Z",
            }
        },
        "holds": {},
    }
