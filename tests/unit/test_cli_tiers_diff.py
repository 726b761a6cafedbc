from __future__ import annotations

from copy import deepcopy
from typing import Any

from cli.tiers_diff import Change, changes
from quota.rules import Rules

DOCUMENT: dict[str, Any] = {
    "default_tier": "free",
    "features": {"image": {"price": "1.50", "format": {"video": "4"}}},
    "tiers": {
        "free": {
            "limits": {
                "tokens": [
                    {"max": 10, "per": "day"},
                    {"max": 20, "per": "day", "mode": "soft"},
                ]
            }
        },
        "pro": {"limits": {"*": {"max": "unlimited", "per": "month"}}},
    },
}  # fmt: skip


def rules(**edits: Any) -> Rules:
    document = deepcopy(DOCUMENT)
    for path, value in edits.items():
        *way, last = path.split("__")
        place = document
        for name in way:
            place = place[name]
        if value is None:
            del place[last]
        else:
            place[last] = value
    return Rules.from_document(document)


def test_the_same_rules_have_no_changes():
    assert changes(rules(), rules()) == []


def test_the_way_a_price_is_written_is_no_change():
    assert changes(rules(), rules(features__image__price="1.5")) == []


def test_the_first_rules_are_all_new():
    found = changes(None, rules())

    assert found[0] == Change("default_tier", None, "free")
    assert all(change.before is None for change in found)
    assert Change("features.image.format.video", None, "4") in found


def test_a_limit_is_known_by_feature_period_and_mode():
    limits = [{"max": 11, "per": "day"}, {"max": 20, "per": "day", "mode": "soft"}]

    found = changes(rules(), rules(tiers__free__limits__tokens=limits))

    assert found == [Change("tiers.free.limits.tokens/day", "10", "11")]


def test_what_is_gone_comes_last():
    found = changes(
        rules(), rules(tiers__pro=None, default_tier="free", features__image__price="2")
    )

    assert found[0] == Change("features.image.price", "1.5", "2")
    assert Change("tiers.pro.limits.*/month", "unlimited", None) in found[1:]


def test_tiers_that_change_places_are_a_change_and_a_new_one_between_them_is_none():
    pro, free = DOCUMENT["tiers"]["pro"], DOCUMENT["tiers"]["free"]
    reordered = rules(tiers={"pro": pro, "free": free})
    between = rules(tiers={"free": free, "plus": pro, "pro": pro})

    assert changes(rules(), reordered) == [Change("tiers", "free, pro", "pro, free")]
    assert "tiers" not in {change.path for change in changes(rules(), between)}


def test_what_an_outage_allows_is_named_where_it_is_written():
    one = {"policy": "allow", "max": 7}
    found = changes(rules(), rules(features__image__on_outage=one, tiers__free__on_outage="allow"))
    own = changes(rules(), rules(tiers__pro__features={"image": {"on_outage": "deny"}}))

    assert found == [
        Change("features.image.on_outage", None, "allow 7"),
        Change("tiers.free.on_outage", None, "allow 100"),
    ]
    assert own == [Change("tiers.pro.features.image.on_outage", None, "deny")]
