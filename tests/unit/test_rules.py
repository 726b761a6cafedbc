from __future__ import annotations

from copy import deepcopy
from decimal import Decimal
from typing import Any

import pytest

from quota.decision import Limit
from quota.errors import InvalidValueError
from quota.on_outage import UNITS_DEFAULT, on_outage_entry, parse_on_outage
from quota.period import CALENDAR_PERIODS
from quota.prices import Price
from quota.rules import Allowance, Rules, per_code, per_name
from quota.values import AMOUNT_MAX, MICRO

NAN = float("nan")
MISSING = object()

GOOD: dict[str, Any] = {
    "default_tier": "free",
    "features": {"image": {"price": "1", "format": {"video": "4"}, "quality": {"high": "2.5"}}},
    "tiers": {
        "free": {
            "credits": {"amount": "20", "every": "month"},
            "limits": {
                "tokens": [
                    {"max": 1000, "per": "day"},
                    {"max": 20_000, "per": "month", "mode": "soft"},
                ],
                "*": {"max": 100_000, "per": "day"},
            },
            "alerts": {"thresholds": [100, 50, 80, 50]},
        },
        "pro": {
            "overdraft": True,
            "limits": {"image": {"max": "unlimited", "per": "window:300"}},
            "features": {"image": {"price": "0.5"}},
        },
    },
}
LIMIT = {"max": 1, "per": "day"}


def with_entry(path: tuple[str | int, ...], entry: object) -> dict[str, Any]:
    """GOOD with *entry* at *path*, or without what is there."""
    document = deepcopy(GOOD)
    table: Any = document
    for step in path[:-1]:
        table = table.setdefault(step, {}) if isinstance(table, dict) else table[step]
    if entry is MISSING:
        del table[path[-1]]
    else:
        table[path[-1]] = entry
    return document


TOKENS = ("tiers", "free", "limits", "tokens")
CREDITS = ("tiers", "free", "credits")
MAX_ON_OUTAGE = "features.image.on_outage.max"
THRESHOLDS = ("tiers", "free", "alerts", "thresholds")

NO_MAX: list[Any] = [-1, 2**53, True, 1.0, NAN, "5", "Unlimited", None, []]

WRONG: list[tuple[tuple[str | int, ...], object, str]] = [
    (("default_tier",), "none", "default_tier"),
    (("default_tier",), ["free"], "default_tier"),
    (("default_tier",), MISSING, "default_tier"),
    (("default_teir",), "free", "default_teir"),
    (("tiers",), MISSING, "tiers"),
    (("tiers",), [], "tiers"),
    (("tiers",), {}, "default_tier"),
    (("features",), "image", "features"),
    (("features", "Image"), {"price": "1"}, "features.Image"),
    (("features", ""), {"price": "1"}, "features."),
    (("features", "x" * 101), {"price": "1"}, "features." + "x" * 101),
    (("features", "a\0"), {"price": "1"}, "features.a\0"),
    (("features", "image"), "1", "features.image"),
    (("features", "image", "price"), MISSING, "features.image.price"),
    (("features", "image", "price"), 1.5, "features.image.price"),
    (("features", "image", "price"), True, "features.image.price"),
    (("features", "image", "price"), "-1", "features.image.price"),
    (("features", "image", "price"), "NaN", "features.image.price"),
    (("features", "image", "price"), NAN, "features.image.price"),
    (("features", "image", "price"), "1e3", "features.image.price"),
    (("features", "image", "prise"), "1", "features.image.prise"),
    (("features", "image", "format"), "4", "features.image.format"),
    (("features", "image", "format", "video"), 4.0, "features.image.format.video"),
    (("features", "image", "format", ""), "4", "features.image.format."),
    (("features", "image", "format", "a\0b"), "4", "features.image.format.a\0b"),
    (("features", "image", "quality", "q" * 201), "4", "features.image.quality." + "q" * 201),
    (("features", "image", "quality", "high"), "-2", "features.image.quality.high"),
    (("tiers", "Free"), {}, "tiers.Free"),
    (("tiers", "a,b"), {}, "tiers.a,b"),
    (("tiers", "a" * 51), {}, "tiers." + "a" * 51),
    (("tiers", "free\n"), {}, "tiers.free\n"),
    (("tiers", "pro"), None, "tiers.pro"),
    (("tiers", "pro", "limit"), {}, "tiers.pro.limit"),
    (("tiers", "pro", "overdraft"), 1, "tiers.pro.overdraft"),
    (("tiers", "pro", "overdraft"), "yes", "tiers.pro.overdraft"),
    (("tiers", "pro", "features", "IMAGE"), {"price": "1"}, "tiers.pro.features.IMAGE"),
    (("tiers", "pro", "features", "sound"), {}, "tiers.pro.features.sound.price"),
    (("tiers", "pro", "features", "image", "price"), "x", "tiers.pro.features.image.price"),
    (("tiers", "pro", "limits"), [], "tiers.pro.limits"),
    (("tiers", "pro", "limits", "Tokens"), LIMIT, "tiers.pro.limits.Tokens"),
    (("tiers", "pro", "limits", "**"), LIMIT, "tiers.pro.limits.**"),
    (TOKENS, [], "tiers.free.limits.tokens"),
    (TOKENS, [{**LIMIT, "per": f"window:{n}"} for n in range(1, 18)], "tiers.free.limits.tokens"),
    (TOKENS, [LIMIT, {"max": 2, "per": "day"}], "tiers.free.limits.tokens"),
    (TOKENS, 5, "tiers.free.limits.tokens"),
    (TOKENS, [LIMIT, 5], "tiers.free.limits.tokens[1]"),
    (TOKENS, {"max": 1}, "tiers.free.limits.tokens.per"),
    (TOKENS, {"per": "day"}, "tiers.free.limits.tokens.max"),
    (TOKENS, {**LIMIT, "maxx": 1}, "tiers.free.limits.tokens.maxx"),
    *(((*TOKENS, 1, "max"), most, "tiers.free.limits.tokens[1].max") for most in NO_MAX),
    *(
        ((*TOKENS, 0, "per"), per, "tiers.free.limits.tokens[0].per")
        for per in (
            "days",
            "Day",
            "window:0",
            "window:",
            "window:1.5",
            "window:9999999999",
            7,
            None,
        )
    ),
    ((*TOKENS, 0, "mode"), "HARD", "tiers.free.limits.tokens[0].mode"),
    ((*TOKENS, 0, "mode"), None, "tiers.free.limits.tokens[0].mode"),
    (CREDITS, "20", "tiers.free.credits"),
    ((*CREDITS, "every"), MISSING, "tiers.free.credits.every"),
    ((*CREDITS, "every"), "hour", "tiers.free.credits.every"),
    ((*CREDITS, "every"), ["month"], "tiers.free.credits.every"),
    ((*CREDITS, "amount"), MISSING, "tiers.free.credits.amount"),
    *(
        ((*CREDITS, "amount"), amount, "tiers.free.credits.amount")
        for amount in (20.0, NAN, True, "-20", "1e3", "0.0000001", str(2**53), 2**53)
    ),
    ((*CREDITS, "currency"), "EUR", "tiers.free.credits.currency"),
    *(
        ((*path, "on_outage", *step), entry, ".".join((*path, "on_outage", *step)))
        for path in (
            ("features", "image"),
            ("features", "sound"),
            ("tiers", "free"),
            ("tiers", "pro", "features", "image"),
        )
        for step, entry in [
            ((), "Allow"),
            ((), True),
            ((), 5),
            ((), ["allow"]),
            (("policy",), "maybe"),
            (("policy",), None),
            (("units",), 5),
        ]
    ),
    *(
        (("features", "image", "on_outage"), {"policy": "allow", "max": most}, MAX_ON_OUTAGE)
        for most in (0, -1, 2**53, True, 1.0, NAN, "5", "unlimited", None)
    ),
    (("features", "image", "on_outage"), {"policy": "deny", "max": 5}, MAX_ON_OUTAGE),
    (("features", "image", "on_outage"), {"max": 5}, "features.image.on_outage.policy"),
    (("features", "sound"), {"on_outage": "allow", "format": {}}, "features.sound.price"),
    (("tiers", "free", "alerts"), [80], "tiers.free.alerts"),
    (("tiers", "free", "alerts", "email"), True, "tiers.free.alerts.email"),
    (THRESHOLDS, 80, "tiers.free.alerts.thresholds"),
    *(
        (THRESHOLDS, [50, percent], "tiers.free.alerts.thresholds[1]")
        for percent in (0, -1, 1001, True, 80.0, NAN, "80", None)
    ),
]


@pytest.mark.parametrize(("path", "entry", "field"), WRONG)
def test_a_wrong_entry_is_refused_by_its_path(
    path: tuple[str | int, ...], entry: object, field: str
):
    with pytest.raises(InvalidValueError) as caught:
        Rules.from_document(with_entry(path, entry))

    assert caught.value.field == field


@pytest.mark.parametrize("document", [None, [], "tiers", 7, b"{}"])
def test_what_is_not_a_table_is_no_tiers_file(document: object):
    with pytest.raises(InvalidValueError) as caught:
        Rules.from_document(document)

    assert caught.value.field == "tiers file"


def test_a_good_document_is_read_whole():
    rules = Rules.from_document(GOOD, version=7)

    assert (rules.default_tier, rules.version, set(rules.tiers)) == ("free", 7, {"free", "pro"})
    free, pro = rules.tiers["free"], rules.tiers["pro"]
    assert free.limits["tokens"] == (Limit("day", "hard", 1000), Limit("month", "soft", 20_000))
    assert free.allowance == Allowance(20 * MICRO, "month")
    assert free.thresholds == (50, 80, 100)
    assert not free.overdraft
    assert pro.limits["image"] == (Limit("window:300", "hard", None),)
    assert pro.allowance is None
    assert pro.thresholds == (80, 100)
    assert pro.overdraft


def test_the_limits_of_a_feature_are_its_own_else_those_of_any_feature_else_none():
    rules = Rules.from_document(GOOD)

    assert rules.tiers["free"].limits_of("tokens") == rules.tiers["free"].limits["tokens"]
    assert rules.tiers["free"].limits_of("sound") == (Limit("day", "hard", 100_000),)
    assert rules.tiers["pro"].limits_of("sound") is None


def test_a_tier_overrides_the_price_and_keeps_the_multipliers_it_does_not_name():
    rules = Rules.from_document(GOOD)
    formats, qualities = {"video": Decimal(4)}, {"high": Decimal("2.5")}

    assert rules.price_of("free", "image") == Price(Decimal(1), formats, qualities)
    assert rules.price_of("pro", "image") == Price(Decimal("0.5"), formats, qualities)
    assert rules.price_of("gone", "image") == rules.price_of("free", "image")
    assert rules.price_of("pro", "tokens") is None


def test_a_zero_price_of_a_tier_makes_the_feature_free_there():
    rules = Rules.from_document(
        with_entry(("tiers", "pro", "features", "image"), {"price": "0", "format": {}})
    )

    assert rules.cost("pro", "image", amount=3, format="video", quality="high") == 0
    assert rules.cost("free", "image", amount=3, format="video", quality="high") == 30 * MICRO


def test_the_cost_for_the_script_names_each_tier_that_has_its_own_price():
    rules = Rules.from_document(GOOD)

    image = rules.cost_spec("image", amount=2, format="video", quality=None)

    assert image == f"{8 * MICRO},pro={4 * MICRO},"
    assert rules.cost_spec("tokens", amount=2, format="video", quality=None) == "0"


def test_the_cost_for_the_script_depends_on_all_that_it_was_asked_for():
    rules = Rules.from_document(GOOD)
    asked: list[tuple[int, str | None, str | None]] = [
        (1, None, None), (2, None, None), (1, "video", None), (1, None, "high"), (1, "high", None),
    ]  # fmt: skip

    for amount, form, quality in asked * 2:  # the second round is answered from the cache
        spec = rules.cost_spec("image", amount=amount, format=form, quality=quality)
        for tier, text in (
            ("free", spec.split(",")[0]),
            ("pro", spec.split("pro=")[1].rstrip(",")),
        ):
            cost = rules.cost(tier, "image", amount=amount, format=form, quality=quality)
            assert int(text) == cost


def test_a_cost_that_no_balance_can_hold_is_refused_as_the_amount():
    rules = Rules.from_document(GOOD)

    with pytest.raises(InvalidValueError) as caught:
        rules.cost("free", "image", amount=AMOUNT_MAX, format=None, quality=None)

    assert caught.value.field == "amount"


def test_the_cost_for_the_script_is_nothing_on_a_tier_where_nobody_can_pay_it():
    dear = {"price": "1", "format": {}, "quality": {}}
    rules = Rules.from_document(with_entry(("tiers", "pro", "features", "tokens"), dear))
    free = Rules.from_document(
        with_entry(("tiers", "pro", "features", "image"), {**dear, "price": "0"})
    )

    assert rules.cost_spec("tokens", amount=AMOUNT_MAX, format=None, quality=None) == "0,pro=,"
    assert free.cost_spec("image", amount=AMOUNT_MAX, format=None, quality=None) == ",pro=0,"


def test_the_lines_for_the_script_say_every_limit_who_may_overdraw_and_each_allowance():
    assert Rules.from_document(GOOD).lines() == {
        "free/tokens": "d,h,1000;m,s,20000;",
        "free/*": "d,h,100000;",
        "pro/image": "s300,h,-1;",
        "free": f"-;{20 * MICRO}/month",
        "pro": "o;-",
    }


def test_every_period_has_a_code_of_its_own_and_comes_back_from_it():
    periods = [*CALENDAR_PERIODS, "window:1", "window:300"]
    codes = [per_code(per) for per in periods]

    assert len(set(codes)) == len(periods)
    assert [per_name(code) for code in codes] == periods


def test_rules_with_other_entries_are_not_equal():
    rules = Rules.from_document(GOOD)

    assert rules == Rules.from_document(deepcopy(GOOD))
    assert rules != Rules.from_document(with_entry((*TOKENS, 0, "max"), 1001))
    assert rules != Rules.from_document(GOOD, version=1)


def test_when_rules_were_applied_is_kept_and_makes_no_others_of_them():
    rules = Rules.from_document(GOOD, version=1, applied_at_ms=5)

    assert (rules.applied_at_ms, Rules.from_document(GOOD).applied_at_ms) == (5, 0)
    assert rules == Rules.from_document(GOOD, version=1, applied_at_ms=6)


# While Redis can not be reached


def outage_rules(
    everyone: object = MISSING, tier: object = MISSING, own: object = MISSING
) -> Rules:
    """Rules of which each place says what *on_outage* is, or nothing."""
    document = with_entry(("default_tier",), "free")
    document["features"] |= {} if everyone is MISSING else {"tokens": {"on_outage": everyone}}
    free = document["tiers"]["free"]
    free |= {} if tier is MISSING else {"on_outage": tier}
    free |= {} if own is MISSING else {"features": {"tokens": {"on_outage": own}}}
    return Rules.from_document(document)


@pytest.mark.parametrize(
    ("everyone", "tier", "own", "units"),
    [
        (MISSING, MISSING, MISSING, 0),
        ("allow", MISSING, MISSING, UNITS_DEFAULT),
        ({"policy": "allow"}, MISSING, MISSING, UNITS_DEFAULT),
        ({"policy": "allow", "max": 7}, MISSING, MISSING, 7),
        ({"policy": "deny"}, MISSING, MISSING, 0),
        ("allow", "deny", MISSING, 0),
        ("deny", {"policy": "allow", "max": 8}, MISSING, 8),
        ("deny", "deny", {"policy": "allow", "max": 9}, 9),
        ("allow", "allow", "deny", 0),
    ],
)
def test_the_nearest_word_on_an_outage_counts(
    everyone: object, tier: object, own: object, units: int
):
    rules = outage_rules(everyone, tier, own)

    assert rules.outage_max(rules.tiers["free"], "tokens", forced=False) == units
    assert rules.allow_on_outage == (
        "allow" in str([everyone, tier, own])  # even where a nearer word denies
    )


def test_an_outage_gives_no_more_than_the_tightest_hard_limit():
    rules = outage_rules({"policy": "allow", "max": 5000})
    free = rules.tiers["free"]

    assert rules.outage_max(free, "tokens", forced=False) == 1000  # a day; the month is soft
    assert rules.outage_max(free, "tokens", forced=True) == 5000


def test_a_feature_that_a_tier_has_not_is_not_used_in_an_outage_either():
    rules = outage_rules({"policy": "allow", "max": 5})
    pro = rules.tiers["pro"]

    assert rules.outage_max(pro, "tokens", forced=False) == 0
    assert rules.outage_max(pro, "tokens", forced=True) == 5  # it has happened


def test_a_word_on_outages_is_no_price():
    rules = Rules.from_document(
        with_entry(("tiers", "pro", "features"), {"image": {"on_outage": "allow"}})
    )

    assert rules.tiers["pro"].prices == {}
    assert rules.price_of("pro", "image") == rules.prices["image"]
    assert outage_rules("allow").price_of("free", "tokens") is None


@pytest.mark.parametrize("units", [0, 1, UNITS_DEFAULT, AMOUNT_MAX])
def test_what_is_written_of_an_outage_is_read_again(units: int):
    assert parse_on_outage(on_outage_entry(units), "x") == units
