"""Numbers that a question is asked with, and that it can be answered with."""

from __future__ import annotations

from quota.errors import InvalidValueError

__all__ = ["check_number"]


def check_number(found: object, *, field: str, most: int) -> int:
    """*found*, if it is an integer from 1 to *most*.

    Raises:
        InvalidValueError: it is not, and which field that is.
    """
    if type(found) is int and 1 <= found <= most:  # True is no number of days
        return found
    raise InvalidValueError(field, found, f"an integer from 1 to {most}")
