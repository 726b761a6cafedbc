"""Which entries of a shard's log have lines of which user, as far as they may not be applied yet.

A load needs the unapplied lines of one user, which are few among very many. The process that loads
keeps this index of each log, reads what is new in it before each load, and then fetches and decodes
only what the wanted users have.

The index proves itself at each use: the last entry it knows has to be in the log as it was. It is not,
if Redis was emptied or set back since, or if all was applied and cut off: then the index begins anew.
"""

from __future__ import annotations

import asyncio
from array import array
from bisect import bisect_right
from sys import byteorder, getsizeof
from typing import TYPE_CHECKING, Any, NamedTuple

from quota.errors import InvalidValueError
from quota.values import parse_user_id
from service.database import statement
from service.shards import entry_number
from service.usage_log import Entries, NewerVersionError, decode_lines, users_in

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from uuid import UUID

    from quota.keys import ShardKeys
    from quota.scripts import Client
    from service.database import Database

__all__ = [
    "EntriesGoneError",
    "EntryNumber",
    "LineMarks",
    "Lines",
    "LogIndex",
    "View",
    "mark_of_user",
]

EntryNumber = tuple[int, int]  # compares as the log is ordered
Lines = tuple[EntryNumber, list[int]]  # of an entry, by their numbers

_MARK_BYTES = 8
_NAMES_MAX = 50_000  # of users, whose mark is remembered
_SOUGHT_MAX = 8  # users, one by one; more are looked for together, in one pass over the lines
_READ_BYTES = 4 * 1024 * 1024  # about so much in one read: some ten milliseconds
_ENTRIES_MIN = (
    10  # in one read, also until it is known how large they are: metadata may make them megabytes
)
_ENTRIES_MAX = 2_000  # in one read: larger ones may follow small ones
_FETCHED_AT_ONCE = 50  # entries


class EntriesGoneError(Exception):
    """An entry that the index knows is not in the log any more."""


class View(NamedTuple):
    """What the index knew at one instant: the *lines* of some users behind *after*.

    *newer* is an entry of a newer version, and why it is left: nothing is known from there on.
    """

    generation: int
    epoch: int
    after: EntryNumber
    lines: list[Lines]
    newer: tuple[EntryNumber, str] | None


def mark_of_user(user_id: UUID) -> bytes:
    """Eight bytes for a user, in this process. Two users of one mark do no harm: what is read is looked at."""
    return hash(user_id.bytes).to_bytes(_MARK_BYTES, byteorder, signed=True)


class _Names(dict[str | None, bytes]):
    """The mark of a user by a name of theirs; another one, of what is no name of a user."""

    def __missing__(self, text: str | None) -> bytes:
        if len(self) >= _NAMES_MAX:
            self.clear()
        try:
            mark = mark_of_user(parse_user_id(text).id)
        except InvalidValueError:
            mark = bytes(_MARK_BYTES)
        self[text] = mark
        return mark


class LineMarks:
    """The marks of the lines of entries, in the order of the log.

    A line takes eight bytes and an entry twenty-four, some fraction of what they take in Redis, whose
    memory is limited: so is this.
    """

    def __init__(self) -> None:
        self._marks = bytearray()
        self._ids = array("Q")  # of each entry, two numbers
        self._ends = array(
            "Q"
        )  # of each entry: lines up to its end, those that were cut among them
        self._cut = 0  # lines

    def __len__(self) -> int:
        """How many lines there are."""
        return len(self._marks) // _MARK_BYTES

    def size_bytes(self) -> int:
        """The memory that they take."""
        return sum(map(getsizeof, (self._marks, self._ids, self._ends)))

    def add(self, entry: EntryNumber, marks: bytes) -> None:
        """Put an entry at the end."""
        self._marks += marks
        self._ids.extend(entry)
        self._ends.append(self._cut + len(self))

    def cut(self, position: EntryNumber) -> None:
        """Drop the entries up to *position*."""
        dropped = bisect_right(range(len(self._ends)), position, key=self._entry)
        if dropped:
            lines = self._ends[dropped - 1] - self._cut
            del self._marks[: lines * _MARK_BYTES]
            del self._ids[: 2 * dropped]
            del self._ends[:dropped]
            self._cut += lines

    def lines_of(self, wanted: Iterable[bytes]) -> list[Lines]:
        """The entries that have lines of any of these marks, and which lines, in their order."""
        sought = set(wanted)
        if len(sought) > _SOUGHT_MAX:
            return self._lines_of_many(sought)
        found: dict[int, list[int]] = {}
        for line in sorted(line for mark in sought for line in self._lines_of(mark)):
            found.setdefault(bisect_right(self._ends, self._cut + line), []).append(line)
        return [
            (self._entry(place), [line - self._start(place) for line in lines])
            for place, lines in found.items()
        ]

    def _entry(self, place: int) -> EntryNumber:
        return self._ids[2 * place], self._ids[2 * place + 1]

    def _start(self, place: int) -> int:
        return self._ends[place - 1] - self._cut if place else 0

    def _lines_of(self, mark: bytes) -> Iterator[int]:
        at = self._marks.find(mark)
        while at >= 0:
            line, within = divmod(at, _MARK_BYTES)
            if within:  # the end of one mark and the beginning of the next
                at = self._marks.find(mark, at + 1)
            else:
                yield line
                at = self._marks.find(mark, at + _MARK_BYTES)

    def _lines_of_many(self, sought: set[bytes]) -> list[Lines]:
        numbers = {int.from_bytes(mark, byteorder) for mark in sought}
        found, start = [], 0
        with memoryview(self._marks) as raw, raw.cast("Q") as marks:
            for place, cut_and_end in enumerate(self._ends):
                end = cut_and_end - self._cut
                with marks[start:end] as own:
                    if not numbers.isdisjoint(own):
                        lines = [line for line, mark in enumerate(own) if mark in numbers]
                        found.append((self._entry(place), lines))
                start = end
        return found


class LogIndex:
    """The index of one shard's log; loads of several tasks share it, and each extension of it."""

    def __init__(self, database: Database, redis: Client, shard: ShardKeys) -> None:
        self._database = database
        self._redis = redis
        self._shard = shard
        self._names = _Names()
        self._lock = asyncio.Lock()
        self._asked = 0  # for an extension
        self._answered = 0  # of those, by an extension that began later
        self._count = _ENTRIES_MIN
        self._generation = 0  # one more whenever the index begins anew
        self._epoch = 0
        self._after: EntryNumber | None = None  # what lies behind is known; None: nothing is
        self._last: EntryNumber = (0, 0)  # what comes next lies behind it
        self._digest: int | None = None  # of the last entry, once there is one
        self._newer: tuple[EntryNumber, str] | None = None
        self._lines = LineMarks()

    async def view(self, user_ids: Iterable[UUID]) -> View:
        """Read what is new in the log, all that is in it when this is called, and find the users' entries."""
        self._asked += 1
        mine = self._asked
        async with self._lock:
            if self._answered < mine:
                asked = self._asked  # who asks later has to know of what was admitted later
                await self._extend()
                self._answered = asked
            # Another load may begin the index anew or cut it whenever something is awaited.
            assert self._after is not None, "it was just extended"
            lines = self._lines.lines_of(map(mark_of_user, user_ids))
            return View(self._generation, self._epoch, self._after, lines, self._newer)

    async def read(self, wanted: Sequence[Lines]) -> Entries:
        """These lines, as far as they can be read.

        Raises:
            EntriesGoneError: an entry is not in the log any more.
        """
        run = Entries(after="0-0", last="0-0")
        for start in range(0, len(wanted), _FETCHED_AT_ONCE):
            some = [
                (_text(entry), numbers)
                for entry, numbers in wanted[start : start + _FETCHED_AT_ONCE]
            ]
            async with self._redis.pipeline(transaction=False) as pipe:
                for entry_id, _ in some:
                    pipe.xrange(self._shard.log, min=entry_id, max=entry_id)
                replies = await pipe.execute()
            for (entry_id, numbers), found in zip(some, replies, strict=True):
                if not found:
                    raise EntriesGoneError(entry_id)
                decode_lines(run, entry_id, found[0][1], numbers)
        return run

    def cut(self, position: EntryNumber, *, epoch: int) -> None:
        """Drop what is applied; a position of another epoch, or an older one, changes nothing."""
        if epoch != self._epoch or self._after is None or position <= self._after:
            return
        if position >= self._last:
            self._begin(position, epoch=epoch)
        else:
            self._lines.cut(position)
            self._after = position

    def forget(self, generation: int) -> None:
        """Begin anew at the next view, unless it did so since the view of that *generation*."""
        if generation == self._generation:
            self._begin(None, epoch=0)

    def _begin(self, position: EntryNumber | None, *, epoch: int) -> None:
        """Know nothing yet of what lies behind *position*; None: it has to be asked for."""
        self._generation += 1
        self._answered = 0  # an extension that is cut off from here on has answered nobody
        self._epoch = epoch
        self._after, self._last = position, position or (0, 0)
        self._digest = self._newer = None
        self._lines = LineMarks()

    async def _extend(self) -> None:
        """Read up to the end of the log."""
        while True:
            generation, count = self._generation, self._count
            if self._after is None:
                await self._ask_position()
                continue
            found = await self._read_on(count)
            if generation != self._generation:
                continue
            if self._digest is not None:
                if not found or _digest(found[0]) != self._digest:
                    self.forget(generation)
                    continue
                del found[0]
            self._add(found)
            if self._newer is not None or len(found) < count - 1:
                return
            # There is much that is new. What of it is applied need not be read.
            await self._ask_position()

    async def _ask_position(self) -> None:
        """Cut to where PostgreSQL stands; begin there, if it is of another epoch or was set back."""
        generation, after = self._generation, self._after
        async with self._database.connection() as connection:
            row = await connection.fetchrow(
                statement("service", "shard_position"), self._shard.index
            )
        assert row is not None, "make_shards made every row at start"
        if (generation, after) != (self._generation, self._after):
            return  # another load has asked since
        epoch, position = row["epoch"], entry_number(row["last_entry_id"])
        if after is None or position < after or epoch != self._epoch:
            self._begin(position, epoch=epoch)
        else:
            self.cut(position, epoch=epoch)

    async def _read_on(self, count: int) -> list[Any]:
        """The last entry that is known, if one is, and those behind it."""
        behind = "(" if self._digest is None else ""
        found: list[Any] = await self._redis.xrange(
            self._shard.log, min=f"{behind}{_text(self._last)}", count=count
        )
        return found

    def _add(self, found: Sequence[Any]) -> None:
        size, last, names = 0, None, self._names
        self._newer = None
        for one in found:
            entry_id, fields = one[0].decode(), one[1]
            entry = entry_number(entry_id)
            try:
                users = users_in(entry_id, fields)
            except NewerVersionError as error:
                self._newer = entry, str(error)
                break
            marks = b"".join([names[user] for user in users])
            self._lines.add(entry, marks)
            size += sum(map(len, fields.values()))
            self._last, last = entry, one
        if last is not None:
            self._digest = _digest(last)
            self._count = min(
                max(_READ_BYTES * len(found) // max(size, 1), _ENTRIES_MIN), _ENTRIES_MAX
            )


def _text(entry: EntryNumber) -> str:
    return f"{entry[0]}-{entry[1]}"


def _digest(entry: Any) -> int:
    entry_id, fields = entry
    return hash((entry_id, *fields.items()))
