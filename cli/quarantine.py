"""`allotment quarantine`: what could not be applied, why, and putting it back."""

from __future__ import annotations

import base64
import sys
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import track

from cli.options import AsJson, Command, examples
from cli.output import Output, printable, table
from cli.session import open_session, run
from quota.client import Quota
from quota.errors import InvalidValueError
from quota.values import instant_ms, instant_text
from service.database import statement
from service.loading import DatabaseLoader
from service.quarantine import ALREADY, RECORDED, REFUSED, Quarantined, Retrier

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cli.session import Session
    from service.quarantine import Retried

__all__ = ["app"]

_MISMATCH = 1
_ID_MAX = 2**63 - 1
_LIMIT_MAX = 10_000
_AT_ONCE = 100  # rows read at once, each with its bytes
_REASON_CHARS_MAX = 200  # in a table; --json has all of it
_REFUSED_MAX = 1_000  # are told one by one

app = typer.Typer(add_completion=False)

Id = Annotated[str, typer.Argument(metavar="ID", help="As `ls` shows it.", show_default=False)]


@app.callback(epilog=examples("allotment quarantine ls", "allotment quarantine retry --all --json"))
def quarantine() -> None:
    """Show what could not be applied, and put it back."""


@app.command(
    cls=Command,
    epilog=examples("allotment quarantine ls", "allotment quarantine ls --limit 5 --json"),
)
def ls(
    *,
    limit: Annotated[str, typer.Option(help=f"At most so many, up to {_LIMIT_MAX}.")] = "100",
    as_json: AsJson = False,
) -> None:
    """List what was set aside, oldest first: where it came from, why, how often it was tried again."""
    run(_ls(Output(as_json=as_json), _integer(limit, field="limit", most=_LIMIT_MAX)))


@app.command(cls=Command, epilog=examples("allotment quarantine show 7"))
def show(record: Id, *, as_json: AsJson = False) -> None:
    """Show one record as it came."""
    run(_show(Output(as_json=as_json), _integer(record, field="id")))


@app.command(
    cls=Command,
    epilog=examples(
        "allotment quarantine retry 7 8       safe to repeat: a record counts once",
        "allotment quarantine retry --all     exits with 1 if any is refused again",
    ),
)
def retry(
    records: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ID…]", help="As `ls` shows them.", show_default=False),
    ] = None,
    *,
    everything: Annotated[bool, typer.Option("--all", help="All there are.")] = False,
    as_json: AsJson = False,
) -> None:
    """Put records back under their keys; those that are refused again stay, with the reason.

    Exits with 1 when one is refused.
    """
    ids = [_integer(text, field="id") for text in dict.fromkeys(records or [])]
    if bool(ids) == everything:
        raise InvalidValueError("id", " ".join(records or []), "ids, or --all")
    if run(_retry(Output(as_json=as_json), ids)):
        raise typer.Exit(_MISMATCH)


def _integer(text: str, *, field: str, most: int = _ID_MAX) -> int:
    digits = text.isascii() and text.isdigit() and len(text) < 20
    if digits and 1 <= int(text) <= most:
        return int(text)
    raise InvalidValueError(field, text, f"an integer from 1 to {most}")


async def _ls(output: Output, limit: int) -> None:
    async with open_session(output) as session, session.database.connection() as connection:
        count = await connection.fetchrow(statement("service", "count_quarantined"))
        rows = await connection.fetch(statement("service", "list_quarantined"), 0, limit)
    records = [{**_about(row), "bytes": row["bytes"]} for row in rows]
    total = max(count["records"], len(records)) if count else 0
    answer = {"total": total, "records": records, "left_out": total - len(records)}
    if not records:
        output.result(answer, "nothing is in quarantine")
        return
    made = table("id", "source", "place", "reason", "since", "retries", right=("id", "retries"))
    for one in records:
        reason = one["reason"]
        if len(reason) > _REASON_CHARS_MAX:
            reason = reason[: _REASON_CHARS_MAX - 1] + "…"
        cells = (one["id"], one["source"], one["place"], reason, one["created_at"], one["retries"])
        made.add_row(*(printable(str(cell)) for cell in cells))
    rest = [f"and {answer['left_out']} more: --limit"] if answer["left_out"] else []
    output.result(answer, made, *rest)


async def _show(output: Output, record: int) -> None:
    async with open_session(output) as session:
        [row] = await _rows(session, [record])
    text = _text(row.raw)
    answer = {
        **_about(row._asdict()),
        "bytes": len(row.raw),
        "raw": text,
        "raw_base64": base64.b64encode(row.raw).decode() if text is None else None,
    }
    shown = [f"{name:<11} {printable(str(answer[name]))}" for name in _ABOUT]
    output.result(answer, "\n".join(shown), printable(repr(row.raw) if text is None else text))


_ABOUT = ("id", "source", "place", "reason", "created_at", "retries")


def _about(row: Any) -> dict[str, Any]:
    found = {name: row[name] for name in _ABOUT}
    found["created_at"] = instant_text(instant_ms(row["created_at"]))
    return found


def _text(raw: bytes) -> str | None:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return None


async def _retry(output: Output, ids: Sequence[int]) -> int:
    """Retry *ids*, or all there are; return how many were refused."""
    counts: Counter[str] = Counter()
    refused: list[Retried] = []
    async with open_session(output) as session:
        await session.rules()  # without tiers nothing can be recorded
        if ids:
            await _rows(session, ids)  # all of them are there, or nothing is done
        else:
            ids = await _all_ids(session)
        async with _quota(session) as quota:
            retrier = Retrier(session.database, session.redis, session.keys, quota)
            for start in _tracked(output, range(0, len(ids), _AT_ONCE)):
                for row in await _rows(session, ids[start : start + _AT_ONCE], strict=False):
                    tried = await retrier.retry(row)
                    counts[tried.outcome] += 1
                    if tried.outcome == REFUSED and len(refused) < _REFUSED_MAX:
                        refused.append(tried)
    answer = {
        "tried": counts.total(),
        "recorded": counts[RECORDED],
        "already_there": counts[ALREADY],
        "refused": counts[REFUSED],
        "refusals": [{"id": one.id, "reason": one.reason} for one in refused],
    }
    lines = [printable(f"{one.id}: {one.reason}") for one in refused]
    sentence = (
        f"{counts[RECORDED]} recorded, {counts[ALREADY]} there already, {counts[REFUSED]} refused"
    )
    output.result(answer, *lines, sentence)
    return counts[REFUSED]


def _tracked(output: Output, starts: range) -> Any:
    silent = output.as_json or not sys.stderr.isatty()
    console = Console(stderr=True)
    return track(starts, "putting back", console=console, disable=silent, transient=True)


async def _all_ids(session: Session) -> list[int]:
    """The ids of all that is there now; what is set aside again meanwhile has another one."""
    ids: list[int] = []
    async with session.database.connection() as connection:
        while True:
            after = ids[-1] if ids else 0
            rows = await connection.fetch(
                statement("service", "list_quarantined"), after, _LIMIT_MAX
            )
            ids += [row["id"] for row in rows]
            if len(rows) < _LIMIT_MAX:
                return ids


async def _rows(session: Session, ids: Sequence[int], *, strict: bool = True) -> list[Quarantined]:
    async with session.database.connection() as connection:
        rows = await connection.fetch(statement("service", "quarantined"), ids)
    found = [Quarantined(**dict(row)) for row in rows]
    missing = set(ids) - {row.id for row in found}
    if strict and missing:
        raise InvalidValueError("id", min(missing), "the id of a record in quarantine")
    return found


def _quota(session: Session) -> Quota:
    """A client that makes users as the worker does: a record may be the first of its user."""
    settings = session.settings
    loader = DatabaseLoader(
        session.database,
        session.redis,
        auto_provision=settings.auto_provision,
        dedupe_ms=settings.dedupe_seconds * 1000,
        late_ms=settings.late_grace * 1000,
    )
    return Quota(session.redis, prefix=settings.key_prefix, shards=settings.shards, loader=loader)
