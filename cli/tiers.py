"""`allotment tiers`: which tiers, limits and prices are in force, and putting others in force."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import AsJson, Command, examples
from cli.output import Output, printable, table
from cli.session import open_session, run
from cli.tiers_diff import Change, changes
from quota.errors import InvalidValueError
from service.rules_in_force import put_in_force
from service.tiers import read_tiers_file, refuse_orphans, stored_rules

if TYPE_CHECKING:
    from rich.table import Table

    from quota.rules import Rules

__all__ = ["app", "read_rules"]

_FILE_BYTES_MAX = 1_000_000  # thousands of tiers; more is another file

app = typer.Typer(add_completion=False)


@app.callback(epilog=examples("allotment tiers show", "allotment tiers apply tiers.toml --dry-run"))
def tiers() -> None:
    """Show tiers, limits and prices, or put those of a file in force."""


@app.command(
    cls=Command,
    epilog=examples(
        "allotment tiers apply tiers.toml --dry-run    what would change",
        "allotment tiers apply tiers.toml",
    ),
)
def apply(
    file: Annotated[Path, typer.Argument(help="A TOML file; tiers.toml is an example.")],
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Put the tiers, limits and prices of a file in force; safe to repeat.

    The file is taken as a whole or refused as a whole. Running processes follow within a second.
    """
    rules = read_rules(file)
    run(_apply(Output(as_json=as_json), rules, dry_run=dry_run))


@app.command(cls=Command, epilog=examples("allotment tiers show", "allotment tiers show --json"))
def show(*, as_json: AsJson = False) -> None:
    """Show the tiers, limits and prices in force."""
    run(_show(Output(as_json=as_json)))


def read_rules(path: Path) -> Rules:
    """The rules in *path*; raises InvalidValueError, which names the file or the entry."""
    try:
        oversize = path.is_file() and path.stat().st_size > _FILE_BYTES_MAX
        rules = None if oversize else read_tiers_file(path)
    except InvalidValueError as error:
        if error.field != str(path):
            raise
        raise InvalidValueError("file", str(path), f"TOML ({error.found})") from None
    except OSError as error:
        reason = (error.strerror or "cannot be read").lower()
        expected = f"a file that can be read ({reason})"
        raise InvalidValueError("file", str(path), expected) from None
    except RecursionError:
        raise InvalidValueError("file", str(path), "tables nested less deeply") from None
    if rules is None:
        raise InvalidValueError("file", str(path), f"at most {_FILE_BYTES_MAX} bytes")
    return rules


async def _apply(output: Output, rules: Rules, *, dry_run: bool) -> None:
    async with open_session(output) as session:
        before = await stored_rules(session.database)
        found = changes(before, rules)
        version = 0 if before is None else before.version
        if dry_run:
            async with session.database.session() as transaction:
                await refuse_orphans(transaction, rules)
        else:
            with output.step("putting the rules in force"):
                applied = await put_in_force(session.database, session.redis, session.keys, rules)
            version = applied.version
    answer = {
        "version": version,
        "dry_run": dry_run,
        "default_tier": rules.default_tier,
        "changes": [change._asdict() for change in found],
    }
    if not found:
        output.result(answer, f"nothing changes: version {version} says the same")
        return
    closing = (
        f"{len(found)} changes, none of them made: run it without --dry-run"
        if dry_run
        else f"version {version} is in force: {len(found)} changes"
    )
    output.result(answer, _changes_table(found), closing)


def _changes_table(found: list[Change]) -> Table:
    made = table("entry", "before", "after", right=("before", "after"))
    for change in found:
        made.add_row(*(printable(text or "–") for text in change))
    return made


async def _show(output: Output) -> None:
    async with open_session(output) as session:
        rules = await session.rules()
    answer: dict[str, Any] = {"version": rules.version, **rules.document}
    made = table("entry", "value", right=("value",))
    for path, _, value in changes(None, rules):
        made.add_row(printable(path), printable(value or "–"))
    output.result(answer, f"version {rules.version}", made)
