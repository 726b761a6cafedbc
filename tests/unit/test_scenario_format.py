from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cli.replay.compare import differences, shown
from cli.replay.fields import NOTHING
from cli.replay.format import MalformedScenarioError, Scenario, parse_scenario, read_scenario
from quota.values import parse_instant

AT = "2024-01-01T00:00:00Z"
TIERS = {"default_tier": "free", "tiers": {"free": {"limits": {"e": {"max": 3, "per": "day"}}}}}


def document(*steps: object, **entries: object) -> dict[str, Any]:
    """A right scenario but for what is given; a step without `at` gets one."""
    found = [{"at": AT, **step} if isinstance(step, dict) else step for step in steps]
    return {
        "name": "a test",
        "tiers": TIERS,
        "users": {"u": {}},
        "steps": found or [{"at": AT, "do": "balance"}],
        **entries,
    }


def parsed(*steps: object, **entries: object) -> Scenario:
    return parse_scenario(document(*steps, **entries), file="f.json")


def refusal(found: object) -> str:
    with pytest.raises(MalformedScenarioError) as refused:
        parse_scenario(found, file="f.json")
    return str(refused.value)


def test_defaults_are_those_of_the_format():
    scenario = parsed({"do": "consume", "feature": "e"}, users={"u": {}})

    member, step = scenario.users["u"], scenario.steps[0]
    assert (member.tier, member.timezone, member.cycle_months) == (None, None, None)
    assert member.anchor == step.at == parse_instant(AT, field="at")
    assert (step.number, step.user, step.expect) == (1, "u", None)


def test_a_step_without_a_time_has_that_of_the_step_before():
    later = "2024-01-02T00:00:00+01:00"
    steps = [{"do": "balance", "at": AT}, {"do": "balance", "at": later}, {"do": "balance"}]

    scenario = parse_scenario(document(steps=steps), file="f.json")

    assert scenario.steps[2].at == scenario.steps[1].at == parse_instant(later, field="at")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"extra": 1}, "extra: expected one of name, tiers, users, steps, found 1"),
        ({"name": 1}, "name: expected one line that says what this is about, found 1"),
        ({"steps": []}, "steps: expected a list of steps, found []"),
        ({"steps": {}}, "steps: expected a list of steps, found {}"),
        ({"steps": [1]}, "steps[0]: expected an object, found 1"),
        ({"steps": [{"do": "balance"}]}, "steps[0].at: expected an instant"),
        ({"steps": [{"at": "2024-01-01", "do": "balance"}]}, "steps[0].at: expected an instant"),
        ({"steps": [{"at": 1704067200, "do": "balance"}]}, "steps[0].at: expected an instant"),
        ({"steps": [{"at": "1970-01-01T00:00:00Z", "do": "balance"}]}, "steps[0].at: expected an"),
        ({"steps": [{"at": "9999-12-31T00:00:00Z", "do": "balance"}]}, "steps[0].at: expected an"),
        ({"users": {}}, "users: expected one user or more, found {}"),
        ({"users": ["u"]}, "users: expected an object, found ['u']"),
        ({"users": {"u": None}}, "users.u: expected an object, found None"),
        ({"users": {"": {}}}, "users.: expected a UUID or a string of 1 to 200 characters"),
        ({"users": {"u": {"role": "x"}}}, "users.u.role: expected one of tier, timezone, anchor"),
        ({"users": {"u": {"tier": "gold"}}}, "users.u.tier: expected one of the tiers: free"),
        ({"users": {"u": {"tier": None}}}, "users.u.tier: expected one of the tiers: free"),
        ({"users": {"u": {"timezone": "Berlin"}}}, "users.u.timezone: expected an IANA time zone"),
        ({"users": {"u": {"anchor": "now"}}}, "users.u.anchor: expected an instant"),
        ({"users": {"u": {"cycle_months": 0}}}, "users.u.cycle_months: expected an integer from 1"),
        ({"tiers": []}, "tiers: expected a table, found []"),
        ({"tiers": {**TIERS, "x": 1}}, "tiers.x: expected one of default_tier, features, tiers"),
        ({"tiers": {**TIERS, "default_tier": "x"}}, "tiers.default_tier: expected one of the tier"),
        (
            {"tiers": {**TIERS, "features": {"e": {"price": 1.5}}}},
            "tiers.features.e.price: expected",
        ),
        (
            {"tiers": {**TIERS, "tiers": {"free": {"limits": {"e": {"max": -1, "per": "day"}}}}}},
            "tiers.tiers.free.limits.e.max: expected",
        ),
    ],
)
def test_an_entry_that_is_wrong_is_refused_with_its_place(entries: dict[str, Any], message: str):
    assert refusal(document(**entries)).startswith(f"f.json: {message}")


@pytest.mark.parametrize("name", ["name", "tiers", "users", "steps"])
def test_an_entry_that_is_missing_is_refused_by_name(name: str):
    found = document()
    del found[name]

    assert refusal(found) == f"f.json: {name}: expected `{name}`, found nothing"


@pytest.mark.parametrize("found", [None, [], "x", 1])
def test_a_file_that_is_no_object_is_refused(found: object):
    assert refusal(found) == f"f.json: scenario: expected an object, found {found!r}"


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"feature": "e"}, "do: expected one of consume, check, record"),
        ({"do": "spend", "feature": "e"}, "do: expected one of consume, check, record"),
        ({"do": ["consume"]}, "do: expected one of consume"),
        ({"do": "consume"}, "feature: expected `feature`, which consume needs, found nothing"),
        ({"do": "consume", "feature": "E"}, "feature: expected"),
        ({"do": "consume", "feature": "e", "amout": 2}, "amout: expected one of at, do, user,"),
        ({"do": "consume", "feature": "e", "amount": 0}, "amount: expected an integer from 1 to"),
        ({"do": "consume", "feature": "e", "amount": -3}, "amount: expected an integer from 1 to"),
        ({"do": "consume", "feature": "e", "amount": 2**53}, "amount: expected an integer from 1"),
        ({"do": "consume", "feature": "e", "amount": 1.0}, "amount: expected an integer from 1 to"),
        ({"do": "consume", "feature": "e", "amount": True}, "amount: expected an integer from 1"),
        ({"do": "consume", "feature": "e", "amount": "1"}, "amount: expected an integer from 1 to"),
        ({"do": "consume", "feature": "e", "amount": None}, "amount: expected an integer from 1"),
        ({"do": "consume", "feature": "e", "key": ""}, "key: expected a string of 1 to 200"),
        ({"do": "consume", "feature": "e", "key": "a\0"}, "key: expected no NUL character"),
        ({"do": "consume", "feature": "e", "format": 4}, "format: expected a string of 1 to 200"),
        ({"do": "consume", "feature": "e", "quality": "x" * 201}, "quality: expected a string"),
        ({"do": "consume", "feature": "e", "metadata": []}, "metadata: expected a JSON object"),
        ({"do": "consume", "feature": "e", "occurred_at": "today"}, "occurred_at: expected an ins"),
        ({"do": "consume", "feature": "e", "parallel": 0}, "parallel: expected an integer from 1"),
        ({"do": "consume", "feature": "e", "parallel": 10**6}, "parallel: expected an integer fr"),
        ({"do": "check", "feature": "e", "parallel": 2}, "parallel: expected one of at, do, user"),
        (
            {"do": "record"},
            "feature: expected a feature, or `features` with amounts, found nothing",
        ),
        ({"do": "record", "features": {}}, "features: expected a table of 1 to 100 features"),
        ({"do": "record", "features": {"e": "1"}}, "features.e: expected an integer from 1"),
        ({"do": "record", "features": {"e": 1}, "amount": 1}, "amount: expected no `amount` besi"),
        ({"do": "record", "features": {"e": 1}, "feature": "e"}, "feature: expected no `feature`"),
        (
            {"do": "reserve", "feature": "e"},
            "hold: expected `hold`, which reserve needs, found nothing",
        ),
        ({"do": "reserve", "hold": "h", "feature": "e", "ttl": 0}, "ttl: expected an integer from"),
        ({"do": "reserve", "hold": "h", "feature": "e", "ttl": 86_401}, "ttl: expected an integer"),
        ({"do": "commit", "hold": "h"}, "hold: expected the name of a hold that an earlier step"),
        ({"do": "release", "hold": "h"}, "hold: expected the name of a hold that an earlier step"),
        ({"do": "refund"}, "key: expected `key`, which refund needs, found nothing"),
        ({"do": "grant", "id": "g"}, "amount: expected `amount`, which grant needs, found nothing"),
        ({"do": "grant", "amount": "1"}, "id: expected `id`, which grant needs, found nothing"),
        ({"do": "grant", "id": "g", "amount": 1.5}, "amount: expected a decimal from 0"),
        ({"do": "grant", "id": "g", "amount": "-1"}, "amount: expected a decimal from 0"),
        ({"do": "grant", "id": "g", "amount": "1e3"}, "amount: expected a decimal from 0"),
        ({"do": "grant", "id": "g", "amount": "1", "kind": "gift"}, "kind: expected one of promo,"),
        (
            {"do": "grant", "id": "g", "amount": "1", "priority": -1},
            "priority: expected an integer",
        ),
        ({"do": "grant", "id": "g", "amount": "1", "every": "year"}, "every: expected one of day,"),
        (
            {"do": "grant", "id": "g", "amount": "1", "min_rollover": "2", "max_rollover": "1"},
            "min_rollover: expected at most max_rollover, 1, found '2'",
        ),
        (
            {"do": "grant", "id": "g", "amount": "1", "expires_at": AT},
            "expires_at: expected an instant after the grant takes effect",
        ),
        ({"do": "void"}, "id: expected `id`, which void needs, found nothing"),
        ({"do": "reset", "preserve_overage": 1}, "preserve_overage: expected true or false"),
        ({"do": "set_tier", "tier": "gold"}, "tier: expected one of the tiers: free, found 'gold'"),
        ({"do": "usage"}, "feature: expected `feature`, which usage needs, found nothing"),
        ({"do": "balance", "feature": "e"}, "feature: expected one of at, do, user, expect"),
        ({"do": "balance", "user": "v"}, "user: expected one of the users: u, found 'v'"),
        ({"do": "balance", "user": 1}, "user: expected one of the users: u, found 1"),
        ({"do": "balance", "expect": []}, "expect: expected an object, found []"),
        ({"do": "balance", "expect": {"error": 1}}, "expect.error: expected the code of an error"),
        (
            {"do": "balance", "expect": {"error": "x", "credits": "1"}},
            "expect.credits: expected one of error, found '1'",
        ),
    ],
)
def test_a_step_that_is_wrong_is_refused_with_its_place(step: dict[str, Any], message: str):
    found = document({"do": "flush_redis"}, step)

    assert refusal(found).startswith(f"f.json: steps[1].{message}")


def test_time_that_goes_back_is_refused():
    steps = [{"at": AT, "do": "balance"}, {"at": "2023-12-31T23:59:59Z", "do": "balance"}]

    message = refusal(document(steps=steps))

    assert message == (
        "f.json: steps[1].at: expected an instant not before the step before, "
        "2024-01-01T00:00:00+00:00, found '2023-12-31T23:59:59Z'"
    )


def test_the_user_may_be_left_out_only_where_there_is_one():
    users: dict[str, Any] = {"u": {}, "v": {}}

    message = refusal(document({"do": "balance"}, users=users))

    assert message == "f.json: steps[0].user: expected one of the users: u, v, found nothing"
    assert parsed({"do": "balance", "user": "v"}, users=users).steps[0].user == "v"


def test_a_hold_belongs_to_the_user_who_reserved_it():
    users: dict[str, Any] = {"u": {}, "v": {}}
    reserve = {"do": "reserve", "hold": "h", "feature": "e", "user": "u"}

    parsed(reserve, {"do": "commit", "hold": "h", "amount": 0, "user": "u"}, users=users)
    message = refusal(document(reserve, {"do": "release", "hold": "h", "user": "v"}, users=users))

    assert message.startswith("f.json: steps[1].hold: expected the name of a hold")


@pytest.mark.parametrize(
    "step",
    [
        {"do": "consume", "feature": "E", "amount": 0},
        {"do": "grant", "id": "g", "amount": "1", "expires_at": AT},
        {"do": "commit", "hold": "unknown"},
        {"do": "set_tier", "tier": "gold"},
    ],
)
def test_a_step_that_expects_an_error_may_have_values_that_cause_it(step: dict[str, Any]):
    assert parsed({**step, "expect": {"error": "invalid_value"}}).steps[0].expects_error


def test_a_step_that_expects_an_error_is_spelt_right_all_the_same():
    step = {"do": "consume", "feature": "e", "amout": 0, "expect": {"error": "invalid_value"}}

    assert refusal(document(step)).startswith("f.json: steps[0].amout: expected one of")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "line 1 column 1: expected JSON, found: Expecting value"),
        (b'{\n "name": }', "line 2 column 10: expected JSON, found: Expecting value"),
        (b"\xff\xfe", "expected JSON, found: 'utf-8' codec can't decode"),
        (b'{"name": NaN}', "expected JSON, found: NaN, which is not a number"),
        (b'{"name": 1, "name": 2}', "expected JSON, found: the name 'name' twice in one object"),
        (b"[" * 100_000, "expected JSON, found: "),
        (b'{"name": ' + b"1" * 5000 + b"}", "expected JSON, found: "),
    ],
)
def test_a_file_that_is_not_json_is_refused(tmp_path: Path, text: bytes, message: str):
    file = tmp_path / "f.json"
    file.write_bytes(text)

    with pytest.raises(MalformedScenarioError) as refused:
        read_scenario(file)

    assert str(refused.value).startswith(f"{file}: {message}")


def test_a_file_that_is_not_there_is_refused(tmp_path: Path):
    for path in (tmp_path / "no.json", tmp_path):
        with pytest.raises(MalformedScenarioError, match="expected a readable file, found: "):
            read_scenario(path)


def test_a_byte_order_mark_is_no_fault(tmp_path: Path):
    file = tmp_path / "f.json"
    file.write_text("\ufeff" + json.dumps(document()), encoding="utf-8")

    assert read_scenario(file).name == "a test"


@pytest.mark.parametrize(
    ("expected", "got"),
    [
        ("2.5", "2.50"),
        (2.5, "2.5"),
        (20, "20"),
        ("0", 0),
        ("2024-01-01T00:00:00Z", "2024-01-01T01:00:00+01:00"),
        ("2024-01-01T00:00:00.000Z", "2024-01-01T00:00:00Z"),
        (None, None),
        (True, True),
        ({}, {"a": 1}),
        ({"a": {"b": "1"}}, {"a": {"b": "1.0", "c": 2}, "d": 3}),
        ([{"a": 1}, 2], [{"a": 1, "b": 2}, 2]),
    ],
)
def test_values_that_are_equal_make_no_difference(expected: object, got: object):
    assert list(differences(expected, got)) == []


@pytest.mark.parametrize(
    ("expected", "got", "field"),
    [
        ({"a": True}, {"a": 1}, "a"),
        ({"a": 1}, {"a": True}, "a"),
        ({"a": 0}, {"a": None}, "a"),
        ({"a": None}, {}, "a"),
        ({"a": "0.1"}, {"a": "0.1000001"}, "a"),
        ({"a": "ok"}, {"a": "soft_limit"}, "a"),
        ({"a": "2024-01-01T00:00:00Z"}, {"a": "2024-01-01T00:00:01Z"}, "a"),
        ({"a": {"b": 1}}, {"a": {"b": 2}}, "a.b"),
        ({"a": {"b": 1}}, {"a": 1}, "a"),
        ({"a": [1]}, {"a": [1, 2]}, "a"),
        ({"a": [1, 2]}, {"a": [2, 1]}, "a[0]"),
        ({"a": [{"b": 1}]}, {"a": [{"b": 2}]}, "a[0].b"),
        ({"a": []}, {"a": [1]}, "a"),
    ],
)
def test_values_that_differ_are_told_with_their_field(expected: object, got: object, field: str):
    assert next(differences(expected, got)).field == field


def test_values_are_shown_as_the_file_has_them():
    values = (True, None, "ok", 3, {"a": [1]}, NOTHING)

    assert [shown(value) for value in values] == [
        "true",
        "null",
        "ok",
        "3",
        '{"a": [1]}',
        "nothing",
    ]
