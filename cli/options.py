"""Options that several commands share, and how a command is built so that its values may be wrong.

A wrong value must reach the check that names its field, so arguments are taken as text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from quota.errors import InvalidValueError
from quota.values import User, parse_user_id

__all__ = ["AsJson", "Command", "UserId", "examples", "user_of"]

AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on stdout, errors included.")
]
UserId = Annotated[
    str,
    typer.Argument(
        metavar="USER", help="A UUID, or whatever the application calls the user.",
        show_default=False,
    ),
]  # fmt: skip

_NUMBER = re.compile(r"-[0-9.]")


class Command(TyperCommand):
    """A command to which `-5` is a value to be refused by name, not an unknown option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse *args* with every number behind a ``--``."""
        if any(_NUMBER.match(word) for word in args):
            switches = [one for one in self.params if getattr(one, "is_flag", False)]
            args = _values_last(args, {name for one in switches for name in one.opts})
        return super().parse_args(ctx, args)


def examples(*lines: str) -> str:
    """The closing section of a command's help."""
    return "Examples:\n" + "\n".join(f"  {line}" for line in lines)


def user_of(text: str) -> User:
    """The user that an argument names; raises InvalidValueError under the argument's own name."""
    try:
        return parse_user_id(text)
    except InvalidValueError as error:
        raise InvalidValueError("user", text, error.expected) from None


def _values_last(words: Iterable[str], switches: set[str]) -> list[str]:
    options: list[str] = []
    values: list[str] = []
    rest = iter(words)
    for word in rest:
        if word == "--":
            values.extend(rest)
        elif not word.startswith("-") or _NUMBER.match(word):
            values.append(word)
        else:
            options.append(word)
            if word not in switches and "=" not in word:
                options.extend([value for value in [next(rest, None)] if value is not None])
    return [*options, "--", *values]
