"""The two forms of every answer: for a person, in tables; for a program, one JSON object on stdout.

With --json nothing else goes to stdout, errors included; what a person is told on the way goes to
stderr in either form.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from cli.failures import Failure

__all__ = ["Output", "printable", "table"]

_PIPE_COLUMNS = 160  # no terminal to ask: wide enough that no cell is folded


class Output:
    """Where one command writes what it did."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self._out = _console(sys.stdout)
        self._err = _console(sys.stderr)

    def result(self, answer: dict[str, Any], *shown: RenderableType) -> None:
        """Print *answer* as JSON, or *shown* to a person."""
        if self.as_json:
            print(json.dumps(answer), flush=True)
            return
        for one in shown:
            self._out.print(one)
        self._out.file.flush()

    def note(self, text: str) -> None:
        """Tell a person something on the way."""
        self._err.print(f"note: {text}", soft_wrap=True)

    def failure(self, failure: Failure) -> None:
        """Say why the command did not do its work."""
        if self.as_json:
            print(json.dumps(failure.as_dict()), flush=True)
            return
        self._err.print(f"error: {printable(failure.message)}", soft_wrap=True)
        if failure.usage:
            self._err.print(f"       see `{failure.usage}`", soft_wrap=True)

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """Show on a terminal that *text* is under way."""
        if self.as_json or not self._err.is_terminal:
            yield
            return
        with self._err.status(text):
            yield


def table(*columns: str, title: str | None = None, right: tuple[str, ...] = ()) -> Table:
    """An empty table; the columns named in *right* hold numbers."""
    made = Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False
    )
    for name in columns:
        made.add_column(name, justify="right" if name in right else "left", overflow="fold")
    return made


def printable(text: str) -> str:
    """*text* without what a terminal would obey instead of show."""
    return "".join(
        one if one.isprintable() or one == "\n" else one.encode("unicode_escape").decode()
        for one in text
    )


def _console(stream: Any) -> Console:
    # Names of users and grants are shown as they are: no markup, no emoji codes.
    columns = None if stream.isatty() else _PIPE_COLUMNS
    return Console(file=stream, width=columns, markup=False, emoji=False, highlight=False)
