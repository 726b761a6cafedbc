"""`allotment reconcile`: Redis beside PostgreSQL and the log, user by user; who differs is loaded anew."""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from cli.options import AsJson, user_of
from cli.output import Output, printable, table
from cli.session import open_session, run
from quota.errors import UnknownUserError
from service.database import statement
from service.reconcile import ABSENT, BUSY, DRIFTED, OUTCOMES, SYNCED, Reconciler
from service.sweep import next_users

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from uuid import UUID

    from rich.console import RenderableType

    from cli.session import Session
    from quota.values import User
    from service.reconcile import Checked

__all__ = ["EXAMPLES", "command"]

EXAMPLES = (
    "allotment reconcile                          all users in Redis; exits with 1 if any differed",
    "allotment reconcile --user user-1 --dry-run",
    "allotment reconcile --dry-run --json",
)
_NOT_PROVEN = 1
_USERS_AT_ONCE = 500
_DIFFERENCES_MAX = 1_000  # are shown; how many there were is said
_LOOKS_MAX = 10  # at a user that does not stand still: who asked waits for an answer


def command(
    *,
    user: Annotated[
        str | None, typer.Option("--user", metavar="USER", help="Only this user.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Compare what Redis has of users with PostgreSQL and the log, and have those that differ loaded anew.

    Works while the system runs: what is admitted meanwhile is no drift. Exits with 1 when something
    differed, healed or not, and when a user could not be compared (it is used without a pause, or its
    shard is just being healed).
    """
    named = None if user is None else user_of(user)
    if run(_reconcile(Output(as_json=as_json), named, dry_run=dry_run)):
        raise typer.Exit(_NOT_PROVEN)


class _Found:
    """What came of the users so far, with the first differences."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.differences: list[dict[str, Any]] = []
        self.count = 0
        self.healed = 0

    async def add(self, session: Session, checked: Sequence[Checked]) -> None:
        self.outcomes.update(one.outcome for one in checked)
        drifted = [one for one in checked if one.outcome == DRIFTED]
        names = await _names(session, [one.user_id for one in drifted])
        for one in drifted:
            self.count += len(one.differences)
            room = _DIFFERENCES_MAX - len(self.differences)
            self.differences += [
                {"user": names.get(one.user_id, str(one.user_id)), **each.as_dict()}
                for each in one.differences[: max(0, room)]
            ]

    def answer(self, *, dry_run: bool) -> dict[str, Any]:
        return {
            "dry_run": dry_run,
            "users": self.outcomes.total(),
            **{outcome: self.outcomes[outcome] for outcome in OUTCOMES},
            "healed": self.healed,
            "differences": self.differences,
            "left_out": self.count - len(self.differences),
        }


async def _reconcile(output: Output, user: User | None, *, dry_run: bool) -> int:
    found = _Found()
    async with open_session(output) as session:
        await session.rules()  # without tiers there is nothing to compare by
        reconciler = Reconciler(
            session.database,
            session.redis,
            session.keys,
            grace_ms=session.settings.late_grace * 1000,
            tries_max=_LOOKS_MAX,
        )
        with _progress(output) as advance:
            async for user_ids, total in _users(session, user):
                checked = await reconciler.check(user_ids)
                await found.add(session, checked)
                if not dry_run:
                    found.healed += await reconciler.heal(checked)
                advance(len(user_ids), total)
        if user is not None and found.outcomes[ABSENT] and not await _names(session, [user.id]):
            raise UnknownUserError(user.text)
    answer = found.answer(dry_run=dry_run)
    output.result(answer, *_shown(answer))
    return found.outcomes[DRIFTED] + found.outcomes[BUSY]


async def _users(session: Session, user: User | None) -> AsyncIterator[tuple[list[UUID], int]]:
    """Users, so many at once, each once, and how many there are."""
    if user is not None:
        yield [user.id], 1
        return
    # Ids of 16 bytes, and no more than Redis has users: SCAN may tell some of them twice.
    found: set[UUID] = set()
    cursor = 0
    while True:
        some, cursor = await next_users(
            session.redis, session.keys, cursor, users_max=_USERS_AT_ONCE
        )
        found.update(some)
        if not cursor:
            break
    user_ids = sorted(found)
    for start in range(0, len(user_ids), _USERS_AT_ONCE):
        yield user_ids[start : start + _USERS_AT_ONCE], len(user_ids)


async def _names(session: Session, user_ids: Sequence[UUID]) -> dict[UUID, str]:
    if not user_ids:
        return {}
    async with session.database.connection() as connection:
        rows = await connection.fetch(statement("service", "names_of_users"), user_ids)
    return {row["id"]: row["name"] for row in rows}


def _shown(answer: dict[str, Any]) -> list[RenderableType]:
    shown: list[RenderableType] = []
    if answer["differences"]:
        right = ("Redis", "PostgreSQL + log", "drift")
        made = table("user", "what", *right, right=right)
        for one in answer["differences"]:
            figures = ("–" if one[name] is None else str(one[name]) for name in _FIGURES)
            made.add_row(*map(printable, (one["user"], one["what"], *figures)))
        shown.append(made)
    if answer["left_out"]:
        shown.append(f"and {answer['left_out']} more differences")
    shown.append(_sentence(answer))
    return shown


_FIGURES = ("cached", "stored", "drift")


def _sentence(answer: dict[str, Any]) -> str:
    parts = [f"{answer['users']} users in Redis: {answer[SYNCED]} are as stored"]
    if answer[DRIFTED]:
        end = "left as they are" if answer["dry_run"] else "dropped, to be loaded anew"
        parts.append(f"{answer[DRIFTED]} differ, {end}")
    if answer[BUSY]:
        parts.append(f"{answer[BUSY]} could not be compared now, try again")
    if answer[ABSENT]:
        parts.append(f"{answer[ABSENT]} not loaded, nothing to compare")
    return "; ".join(parts)


@contextmanager
def _progress(output: Output) -> Iterator[Callable[[int, int], None]]:
    """A bar, where there is somebody to see it."""
    console = Console(stderr=True)
    if output.as_json or not sys.stderr.isatty():
        yield lambda _more, _total: None
        return
    columns = (TextColumn("comparing users"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("comparing", total=None)
        yield lambda more, total: bar.update(task, advance=more, total=total)
