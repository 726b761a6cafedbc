from __future__ import annotations

import pickle

import pytest

from quota.errors import (
    InvalidValueError,
    KeyConflictError,
    QuotaError,
    QuotaUnavailableError,
    UnknownGrantError,
    UnknownHoldError,
    UnknownKeyError,
    UnknownUserError,
)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (QuotaUnavailableError(), "unavailable"),
        (KeyConflictError("job-1"), "key_conflict"),
        (UnknownUserError("u"), "unknown_user"),
        (UnknownHoldError("h"), "unknown_hold"),
        (UnknownKeyError("k"), "unknown_key"),
        (UnknownGrantError("g"), "unknown_grant"),
        (InvalidValueError("amount", -3, "an integer"), "invalid_value"),
    ],
)
def test_every_error_has_its_code_and_survives_pickling(error: QuotaError, code: str):
    copy = pickle.loads(pickle.dumps(error))

    assert error.code == code
    assert isinstance(error, QuotaError)
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


def test_an_error_without_a_message_says_what_its_class_says():
    assert str(QuotaUnavailableError()) == (
        "The quota store cannot be reached; nothing is known to have been counted."
    )
    assert str(QuotaUnavailableError("connection refused")) == "connection refused"


def test_an_invalid_value_names_the_field_what_was_expected_and_what_was_found():
    error = InvalidValueError("amount", -3, "an integer from 1 to 9007199254740991")

    assert str(error) == "amount: expected an integer from 1 to 9007199254740991, found -3"
    assert error.field == "amount"
    assert isinstance(error, ValueError)


def test_a_key_conflict_and_an_unknown_user_name_theirs():
    assert "'job-1'" in str(KeyConflictError("job-1"))
    assert KeyConflictError("job-1").key == "job-1"
    assert "'u-9'" in str(UnknownUserError("u-9"))
    assert UnknownUserError("u-9").user_id == "u-9"


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (UnknownHoldError, "no hold 'x-1'"),
        (UnknownKeyError, "no record with the key 'x-1'"),
        (UnknownGrantError, "no grant 'x-1'"),
    ],
)
def test_what_is_unknown_is_named(
    kind: type[UnknownHoldError | UnknownKeyError | UnknownGrantError], message: str
):
    assert str(kind("x-1")) == message
    assert kind("x-1").name == "x-1"
    assert len(str(kind("x" * 10_000_000))) < 120


def nested(levels: int) -> object:
    value: object = 1
    for _ in range(levels):
        value = [value]
    return value


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError


Impostor = type("list", (), {})  # `reprlib` goes by the name of a class


@pytest.mark.parametrize(
    "found",
    [
        "x" * 10_000_000,
        10**5000,
        [10**5000],
        nested(100_000),
        {str(i): i for i in range(10_000)},
        Unprintable(),
        Impostor(),
        "\ud800",
        b"\xff" * 1000,
    ],
    ids=lambda found: type(found).__name__,
)
def test_whatever_was_found_is_shown_in_at_most_80_characters(found: object):
    message = str(InvalidValueError("field", found, "x"))

    shown = message.removeprefix("field: expected x, found ")
    assert 0 < len(shown) <= 80
    assert message.encode()  # no lone surrogate reaches a log or a response
