"""The exceptions a caller of `quota` can act on.

A refusal is a value (`quota.decision.Decision`), so what is raised here is either
a fault of the caller's input or of the machinery, never "you may not".
"""

from __future__ import annotations

import inspect
import reprlib
from typing import ClassVar

__all__ = [
    "InvalidValueError",
    "KeyConflictError",
    "QuotaError",
    "QuotaUnavailableError",
    "UnknownGrantError",
    "UnknownHoldError",
    "UnknownKeyError",
    "UnknownUserError",
]

_SHOWN_CHARS_MAX = 80  # enough to recognise a value in a log line, too little to flood it

_REPR = reprlib.Repr()
_REPR.maxlevel = 3
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = _SHOWN_CHARS_MAX


class QuotaError(Exception):
    """The quota system could not answer."""

    code: ClassVar[str] = "quota_error"

    def __str__(self) -> str:
        """The message given, else the docstring of the class."""
        return super().__str__() or inspect.getdoc(type(self)) or self.code


class QuotaUnavailableError(QuotaError):
    """The quota store cannot be reached; nothing is known to have been counted."""

    code: ClassVar[str] = "unavailable"


class KeyConflictError(QuotaError):
    """The key was already used for a different record."""

    code: ClassVar[str] = "key_conflict"

    def __init__(self, key: str) -> None:
        super().__init__(key)  # the arguments as given, so that the error survives pickling
        self.key = key

    def __str__(self) -> str:
        return f"the key {_shown(self.key)} was already used for a different record"


class UnknownUserError(QuotaError):
    """The user does not exist, and unknown users are not made on first use."""

    code: ClassVar[str] = "unknown_user"

    def __init__(self, user_id: str) -> None:
        super().__init__(user_id)
        self.user_id = user_id

    def __str__(self) -> str:
        return f"no user {_shown(self.user_id)}"


class _UnknownNameError(QuotaError):
    """What was named does not exist; nothing changed."""

    _what: ClassVar[str]

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return f"no {self._what} {_shown(self.name)}"


class UnknownHoldError(_UnknownNameError):
    """There is no such hold: it was never allowed, or it ended longer ago than keys are remembered."""

    code: ClassVar[str] = "unknown_hold"
    _what = "hold"


class UnknownKeyError(_UnknownNameError):
    """No usage was recorded under this key."""

    code: ClassVar[str] = "unknown_key"
    _what = "record with the key"


class UnknownGrantError(_UnknownNameError):
    """The user has no such grant."""

    code: ClassVar[str] = "unknown_grant"
    _what = "grant"


class InvalidValueError(QuotaError, ValueError):
    """A value was refused at the edge; nothing of the call was carried out."""

    code: ClassVar[str] = "invalid_value"

    def __init__(self, field: str, found: object, expected: str) -> None:
        super().__init__(field, found, expected)
        self.field = field
        self.found = found
        self.expected = expected

    def __str__(self) -> str:
        return f"{self.field}: expected {self.expected}, found {_shown(self.found)}"


def _shown(found: object) -> str:
    """A short `repr` of *found* that neither raises nor takes long, whatever it is."""
    try:
        text = _REPR.repr(found)
    except (AttributeError, TypeError, ValueError):  # an integer of 4300 digits, a class named list
        text = f"a value of type {type(found).__name__}"
    if len(text) > _SHOWN_CHARS_MAX:
        return text[: _SHOWN_CHARS_MAX - 3] + "..."
    return text
