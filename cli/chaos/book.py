"""A producer's book: what it asks, before it asks, and what it was answered, in a file that outlives it.

Each line is one write to the file, so a producer that is killed leaves whole lines and at most a torn last one.
An act that was asked and not answered is unknown: it is repeated with the same key, and if no answer
ever comes, either fate is right.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from cli.demo.ledger import Entry, Ledger
from quota.values import parse_user_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path
    from types import TracebackType
    from typing import Any, Self
    from uuid import UUID

    from cli.chaos.acts import Act
    from cli.demo.day import Call

__all__ = ["GONE", "Answered", "Book", "Told", "Written", "read_book", "told_by"]


class Answered(NamedTuple):
    """What a call was told: the lines that are admitted (feature, units, cost), and whether just now.

    *again*: it had been asked before, and nobody knows what became of that.
    """

    lines: list[tuple[str, int, int | None]]
    fresh: bool
    again: bool = False


GONE = Answered([], fresh=True)  # nobody can tell any more; never written down


class Book:
    """The file, open for more."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(self._file, b"\n")  # behind a line that was torn

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._file)

    def asks(self, acts: Iterable[Act]) -> None:
        """Note that these are about to be asked."""
        self._write({"asked": [act.number for act in acts]})

    def answered(self, answers: Mapping[int, Answered]) -> None:
        """Note what was told to the acts of these numbers."""
        if answers:
            self._write({"answered": answers})

    def _write(self, line: dict[str, Any]) -> None:
        text = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        while text:
            text = text[os.write(self._file, text) :]


@dataclass(slots=True)
class Written:
    """What a book says: the acts that are open, those that were answered, and the next number."""

    answered: dict[int, Answered] = field(default_factory=dict)
    open: dict[int, None] = field(default_factory=dict)
    next: int = 0


@dataclass(frozen=True, slots=True)
class Told:
    """The ledger, and the keys that were admitted, though it is not known with which answer."""

    ledger: Ledger
    admitted_somehow: list[tuple[UUID, str]] = field(default_factory=list)


def read_book(path: Path) -> Written:
    """Read the book at *path*, which need not exist."""
    written = Written()
    for line in _lines(path):
        for number in line.get("asked", ()):
            written.next = max(written.next, number + 1)
            if number not in written.answered:
                written.open[number] = None
        for text, (lines, fresh, again) in line.get("answered", {}).items():
            written.open.pop(int(text), None)
            written.answered[int(text)] = Answered([tuple(one) for one in lines], fresh, again)
    return written


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    with path.open("rb") as file:
        for text in file:
            if not text.strip():
                continue
            try:
                yield json.loads(text)
            except ValueError:
                continue  # torn by a kill: what it would have said is open, or was never asked


@dataclass(slots=True)
class _Told:
    """What all callers were told of one key."""

    call: Call
    answers: list[Answered] = field(default_factory=list)
    open: bool = False


def told_by(books: Iterable[tuple[Written, Mapping[int, Act]]], *, emptied: bool = False) -> Told:
    """All that callers were told, as the audit of the demo takes it.

    A key that was admitted to one caller is admitted, whatever others were told or not told. Where Redis
    was *emptied*, it forgot which keys it had admitted, and may answer a repeat otherwise: then either
    answer is right, but one of them it has to be.
    """
    told: dict[tuple[UUID, str], _Told] = {}
    for written, acts in books:
        for number in [*written.open, *written.answered]:
            call = acts[number].call
            one = told.setdefault((parse_user_id(call.user).id, call.key), _Told(call))
            if number in written.answered:
                one.answers.append(written.answered[number])
            else:
                one.open = True
    found = Told(Ledger())
    for mark, one in told.items():
        _book(found, mark, one, emptied=emptied)
    return found


def _book(found: Told, mark: tuple[UUID, str], told: _Told, *, emptied: bool) -> None:
    admitted = [answer for answer in told.answers if answer.lines]
    unlike = len({repr(answer.lines) for answer in admitted}) > 1
    doubtful = not admitted and any(answer.again for answer in told.answers)
    if admitted:
        found.ledger.answered_twice += max(0, sum(answer.fresh for answer in admitted) - 1)
    if emptied and (unlike or doubtful):
        found.ledger.unanswered[mark] = None
        if admitted:
            found.admitted_somehow.append(mark)
    elif admitted:
        found.ledger.entries += [
            Entry(*mark, place, feature, units, cost, told.call.verb)
            for place, (feature, units, cost) in enumerate(admitted[0].lines)
        ]
    elif told.open:
        found.ledger.unanswered[mark] = None
