"""Entries of the usage log: read from Redis, decoded, and checked line by line.

An entry is what one call of the admit script let in. It carries a version: what a newer version
of the service wrote is left for it, and what nobody can read is told apart from what can.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from quota.period import WINDOW_SECONDS_MAX
from quota.values import (
    METADATA_BYTES_MAX,
    MICRO_MAX,
    parse_amount,
    parse_feature,
    parse_key,
    parse_label,
    parse_user_id,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from quota.keys import ShardKeys
    from quota.scripts import Client

__all__ = [
    "COMMIT",
    "EXPIRE",
    "INSTANT_MS_MAX",
    "RELEASE",
    "RESERVE",
    "Code",
    "Entries",
    "Line",
    "NewerVersionError",
    "Unreadable",
    "decode_lines",
    "read_entries",
    "users_in",
]

VERSION = 2
_VERSIONS = (b"1", b"2")  # a 1 has no codes; who writes it may not have been restarted yet
RESERVE, COMMIT, RELEASE, EXPIRE = "h", "c", "r", "x"
BYTES_MAX = 32 * 1024 * 1024  # of one run: metadata may make a line 16 KiB long
LARGE_BYTES = 64 * 1024  # of an entry: 400 lines without metadata have less
ENTRIES_MIN = 10
ENTRIES_MAX = 200  # in one read: at 400 lines each, what a large batch takes
INSTANT_MS_MAX = (
    221_845_392_000_000  # the year 9000: its periods still end in a year that datetime has
)
_NUMBER_MAX = 32_767  # a smallint; `quota` puts at most 100 lines into a record
_PRICE = re.compile(
    rb"[0-9]{1,100}/[1-9][0-9]{0,99}"
)  # three factors of 27 digits, times a million
_NO_METADATA = msgspec.Raw(b"null")
_SHORT_BYTES = 200  # of a line: shorter than a text in it may be
_LABELS = ("format", "quality", "event_id", "event_type", "product_version", "session_id")


class NewerVersionError(Exception):
    """The log has an entry of a newer version of the service; a newer worker has to apply it."""


class Code(NamedTuple):
    """What a line does to a hold, whose key it has.

    *at_ms* is when a reserve expires or an expired hold ended, 0 for others; *price* is that of a
    reserve, `num/den` micro-credits a unit.
    """

    op: str
    at_ms: int = 0
    price: str = ""


class Line(msgspec.Struct, array_like=True, gc=False):
    """A line of an entry, in the order of `quota.wire`; what follows `number` may be left out.

    `windows` and `code` are not of the line: the entry tells which windows of so many seconds it
    counts in, as pairs of seconds and end in ms, and what it does to a hold.
    """

    user: str
    feature: str
    amount: int
    key: str
    number: int
    format: str | None = None
    quality: str | None = None
    metadata: msgspec.Raw = _NO_METADATA
    occurred_at_ms: int | None = None
    event_id: str | None = None
    event_type: str | None = None
    product_version: str | None = None
    session_id: str | None = None
    windows: list[tuple[int, int]] | None = None
    code: Code | None = None


class _Head(msgspec.Struct, array_like=True, gc=False):
    """A line of which only the user is looked at; the rest is passed over, which is far quicker."""

    user: str


@dataclass(frozen=True, slots=True)
class Unreadable:
    """What could not be decoded: where it lies in the log, the bytes, and why."""

    place: str
    raw: bytes
    reason: str


@dataclass(slots=True)
class Entries:
    """A run of the log: its lines in order, each with the user's id, its cost and its instant."""

    after: str
    last: str
    lines: list[tuple[UUID, Line, int, int, str]] = field(default_factory=list)
    unreadable: list[Unreadable] = field(default_factory=list)


_decode_lines = msgspec.json.Decoder(list[Line]).decode
_decode_raw = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_line = msgspec.json.Decoder(Line).decode
_decode_heads = msgspec.json.Decoder(list[_Head]).decode
_decode_head = msgspec.json.Decoder(_Head).decode


async def read_entries(
    redis: Client, shard: ShardKeys, *, after: str, lines_max: int, bytes_max: int = BYTES_MAX
) -> Entries:
    """The entries behind *after*, as many as hold *lines_max* lines or *bytes_max*; at least one, whole.

    Raises:
        NewerVersionError: the first of them is of a newer version.
    """
    run = Entries(after=after, last=after)
    size = 0
    count = ENTRIES_MIN  # until it is known how large entries are here
    while len(run.lines) < lines_max and size < bytes_max:
        found = await redis.xrange(shard.log, min=f"({run.last}", count=count)
        if not found:
            break
        for entry_id, fields in found:
            try:
                decode_entry(run, entry_id.decode(), fields)
            except NewerVersionError:
                if run.last == after:
                    raise
                return run
            run.last = entry_id.decode()
            size += sum(map(len, fields.values()))
            if len(run.lines) >= lines_max or size >= bytes_max:
                break
        mean = sum(len(text) for _, fields in found for text in fields.values()) // len(found)
        count = ENTRIES_MAX if mean < LARGE_BYTES else ENTRIES_MIN
    return run


def decode_entry(run: Entries, entry_id: str, fields: dict[bytes, bytes]) -> None:
    """Add the lines of an entry to *run*, and what of it cannot be read."""
    _refuse_newer(entry_id, fields)
    try:
        at_ms, lines, raw_lines, costs, windows, codes = _parts(fields)
    except (KeyError, ValueError, RecursionError, msgspec.DecodeError) as error:
        reason = f"no field {error}" if isinstance(error, KeyError) else str(error)
        run.unreadable.append(Unreadable(entry_id, msgspec.json.encode(_texts(fields)), reason))
        return
    try:
        decoded: list[Line] | None = _decode_lines(lines)
    except (
        ValueError,
        RecursionError,
        msgspec.DecodeError,
    ):  # the first is of a byte that is no UTF-8
        decoded = None  # one of them is wrong: find out which
    for number, raw in enumerate(raw_lines):
        try:
            line = decoded[number] if decoded else _decode_line(raw)
            cost = _cost(costs[number])
            line.windows = _windows(windows[number]) if windows[number] else None
            line.code = _code(codes[number]) if codes[number] else None
            user = parse_user_id(line.user)
            parse_feature(line.feature)
            if line.amount or line.code is None or line.code.op == RESERVE:
                parse_amount(line.amount)
            parse_key(line.key)
            if line.number or line.metadata is not _NO_METADATA:
                _check_rest(line)
            if len(raw) > _SHORT_BYTES:
                _check_sizes(line)
        except (ValueError, RecursionError, msgspec.DecodeError) as error:
            run.unreadable.append(Unreadable(f"{entry_id}/{number}", bytes(raw), str(error)))
        else:
            run.lines.append((user.id, line, cost, at_ms, entry_id))


def users_in(entry_id: str, fields: dict[bytes, bytes]) -> list[str | None]:
    """The user of each line of an entry; None where a line cannot be read, no line where the entry cannot.

    No line that `decode_entry` reads is missing, though some may be there that it refuses.

    Raises:
        NewerVersionError: the entry is of a newer version.
    """
    _refuse_newer(entry_id, fields)
    lines = fields.get(b"r", b"")
    try:
        return [head.user for head in _decode_heads(lines)]
    except (ValueError, RecursionError, msgspec.DecodeError):
        pass  # one of them is wrong, or all
    try:
        raw_lines: list[Any] = _decode_raw(lines)
    except (ValueError, RecursionError, msgspec.DecodeError):
        return []
    return [_user_in(raw) for raw in raw_lines]


def decode_lines(
    run: Entries, entry_id: str, fields: dict[bytes, bytes], numbers: Sequence[int]
) -> None:
    """Add the lines of these *numbers* to *run*, as `decode_entry` would; what it refuses is left out.

    Raises:
        NewerVersionError: the entry is of a newer version.
    """
    _refuse_newer(entry_id, fields)
    try:
        at_ms, _, *columns = _parts(fields)
        lines, costs, windows, codes = ([column[n] for n in numbers] for column in columns)
    except (KeyError, ValueError, IndexError, RecursionError, msgspec.DecodeError):
        return
    some = {
        b"v": fields[b"v"],
        b"t": b"%d" % at_ms,
        b"r": b"[%b]" % b",".join(map(bytes, lines)),
        b"c": b",".join(cost or b"-" for cost in costs),  # an empty last one would not be counted
        b"w": b",".join(windows),
        b"k": b",".join(codes),
    }
    decode_entry(run, entry_id, some)


def _refuse_newer(entry_id: str, fields: dict[bytes, bytes]) -> None:
    version = fields.get(b"v", b"")
    if version.isdigit() and len(version) < 10 and int(version) > VERSION:
        raise NewerVersionError(
            f"entry {entry_id} is of version {version.decode()}, this worker reads {VERSION}"
        )


def _user_in(raw: Any) -> str | None:
    try:
        return _decode_head(raw).user
    except (ValueError, RecursionError, msgspec.DecodeError):
        return None


def _parts(
    fields: dict[bytes, bytes],
) -> tuple[int, bytes, list[Any], list[bytes], list[bytes], list[bytes]]:
    """The instant of an entry, its lines whole and one by one, and what it says of each: cost, windows, code."""
    version = fields[b"v"]
    if version not in _VERSIONS:
        raise ValueError(f"v: not a version: {version[:40]!r}")
    at_ms, lines = _instant(fields[b"t"]), fields[b"r"]
    raw_lines: list[Any] = _decode_raw(lines)
    count, costs = len(raw_lines), fields[b"c"].rstrip(b",").split(b",")
    windows = fields[b"w"].split(b",") if b"w" in fields else [b""] * count
    codes = fields[b"k"].split(b",") if b"k" in fields else [b""] * count
    if not len(costs) == len(windows) == len(codes) == count:
        raise ValueError(
            f"{count} lines, but {len(costs)} costs, {len(windows)} windows and {len(codes)} codes"
        )
    return at_ms, lines, raw_lines, costs, windows, codes


def _instant(text: bytes) -> int:
    if not text.isdigit() or len(text) > 15 or int(text) > INSTANT_MS_MAX:
        raise ValueError(f"t: not milliseconds: {text[:40]!r}")
    return int(text)


def _check_rest(line: Line) -> None:
    """What few lines have, and PostgreSQL or datetime would stumble over."""
    bytes(line.metadata).decode()  # it is passed on as it is, and so far nobody has looked inside
    if not 0 <= line.number <= _NUMBER_MAX:
        raise ValueError(f"number: not of a line: {line.number}")
    if line.occurred_at_ms is not None and not 0 <= line.occurred_at_ms <= INSTANT_MS_MAX:
        raise ValueError(f"occurred_at: not milliseconds: {line.occurred_at_ms}")


def _check_sizes(line: Line) -> None:
    """What no client of ours would have let in; most lines are too short for it."""
    size = len(bytes(line.metadata))
    if size > METADATA_BYTES_MAX:
        raise ValueError(f"metadata: {size} bytes, at most {METADATA_BYTES_MAX}")
    for name in _LABELS:
        parse_label(getattr(line, name), field=name)


def _cost(text: bytes) -> int:
    if not text.isdigit() or len(text) > 16 or int(text) > MICRO_MAX:
        raise ValueError(f"cost: not micro-credits: {text[:40]!r}")
    return int(text)


def _code(text: bytes) -> Code:
    op, rest = text[:1].decode("latin-1"), text[1:]
    if op == RESERVE:
        expires, _, price = rest.partition(b";")
        if _PRICE.fullmatch(price):
            return Code(op, _instant(expires), price.decode())
    elif op == EXPIRE:
        return Code(op, _instant(rest))
    elif op in (COMMIT, RELEASE) and not rest:
        return Code(op)
    raise ValueError(f"code: nothing that is done to a hold: {text[:80]!r}")


def _windows(text: bytes) -> list[tuple[int, int]]:
    found = []
    for window in text.rstrip(b";").split(b";"):
        seconds, _, end_ms = window.partition(b":")
        if not seconds.isdigit() or not 1 <= int(seconds) <= WINDOW_SECONDS_MAX:
            raise ValueError(f"window: not seconds and an end: {text[:40]!r}")
        found.append((int(seconds), _instant(end_ms)))
    return list(dict.fromkeys(found))  # a hard and a soft limit on one window are one count


def _texts(fields: dict[bytes, bytes]) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in fields.items()}
