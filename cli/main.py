"""`allotment`: finds the command that was asked for, runs it, and says how it ended.

Only the command that is asked for is imported: most of them bring a database driver along.
"""

from __future__ import annotations

import asyncio
import sys
import tomllib
import traceback
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cli.options import Command, examples
from cli.output import Output

__all__ = ["main"]

# Each module has `app`, a Typer of several commands, or `command`, a function, with `EXAMPLES`.
# The line is for the list of commands, which is shown without importing any of them.
_COMMANDS = {
    "up": ("cli.up", "Run everything in one process: servers, worker and api."),
    "demo": ("cli.demo", "Run the main job on real input, and count what came of it."),
    "serve": ("cli.serve", "Answer HTTP: is it alive, is it ready, what does it count."),
    "worker": ("cli.worker", "Apply the usage log to PostgreSQL, and load users."),
    "migrate": ("cli.migrate", "Bring the database to the schema of this version."),
    "check-schema": (
        "cli.check_schema",
        "Say what of the schema is there, missing, or in the way.",
    ),
    "tiers": ("cli.tiers", "Show tiers, limits and prices, or put those of a file in force."),
    "grant": ("cli.grant", "Give a user credits."),
    "void": ("cli.void", "End a grant: what is left of it is gone."),
    "reset": ("cli.reset", "Let a user's credits roll over now."),
    "refund": ("cli.refund", "Take a usage record back, and give its credits back."),
    "balance": ("cli.balance", "Show a user's credits, grants and limits."),
    "explain": ("cli.explain", "Show why a user may use a feature once more, or may not."),
    "reconcile": (
        "cli.reconcile",
        "Compare Redis with PostgreSQL, and have who differs loaded anew.",
    ),
    "quarantine": ("cli.quarantine", "Show what could not be applied, and put it back."),
    "verify": ("cli.verify", "Compare every figure with the records that it comes from."),
    "rebuild": ("cli.rebuild", "Count days, months and lifetimes anew, from the log of usage."),
    "user": ("cli.user", "Make, change or show a user: tier, how long it lasts, calendar."),
    "adoption": ("cli.adoption", "Show how many users have used each feature, and since when."),
    "chaos": ("cli.chaos", "Kill and pause real processes under load, and count what is lost."),
    "replay": ("cli.replay", "Run scenario files on real servers, and compare."),
}
_EXIT_INTERRUPTED = 130  # as a shell reports a program that Ctrl-C ended


class Commands(TyperGroup):
    """The commands, each imported when it is asked for."""

    _listing = False

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Show the list of commands."""
        self._listing = True
        super().format_help(ctx, formatter)

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        """Their names, in the order in which a new user meets them."""
        return [name for name, (module, _) in _COMMANDS.items() if find_spec(module) is not None]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import and build the command; None when there is none of this name."""
        if cmd_name not in self.list_commands(ctx):
            return None
        module, line = _COMMANDS[cmd_name]
        if self._listing:
            return Command(name=cmd_name, help=line)
        return _built(import_module(module), cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command, or suggest one."""
        try:
            return super().resolve_command(ctx, args)
        except typer.TyperException as error:
            near = get_close_matches(args[0], self.list_commands(ctx), n=1)
            if near:
                error.message = f"{error.message.rstrip('.')}. Did you mean {near[0]!r}?"
            raise


app = typer.Typer(
    cls=Commands,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=examples(
        "allotment up                          everything, in one process",
        "allotment tiers apply tiers.toml      put tiers, limits and prices in force",
        "allotment grant user-1 20             give credits",
        "allotment balance user-1 --json       what is left, for a program",
    ),
)


@app.callback(invoke_without_command=True)
def allotment(
    ctx: typer.Context,
    *,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> int:
    """Meter what users do, and keep them inside their tier's limits and credits.

    Uses the servers of DATABASE_URL and REDIS_URL; without these, its own, in ./.allotment.
    """
    if version:
        print(f"allotment {_version()}")
        raise typer.Exit
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())
        raise typer.Exit(2)
    return 0


def main() -> None:
    """Run the command line of this process, and exit."""
    sys.exit(run(sys.argv[1:]))


def run(words: list[str]) -> int:
    """Run the command that *words* ask for; return 0, 1 (drift, mismatch) or 2 (refused)."""
    command = typer.main.get_command(app)
    try:
        ended = command.main(args=words, prog_name="allotment", standalone_mode=False)
    except (KeyboardInterrupt, asyncio.CancelledError, typer.Abort):
        return _EXIT_INTERRUPTED
    except Exception as error:
        return _told(error, Output(as_json=_wants_json(words)))
    return ended if isinstance(ended, int) else 0


def _told(error: Exception, output: Output) -> int:
    from cli.failures import EXIT_REFUSED, Failure, failure_of  # noqa: PLC0415  brings the drivers

    failure = failure_of(error)
    if failure is None:
        traceback.print_exception(error)
        failure = Failure("internal", f"a fault of allotment: {type(error).__name__}: {error}")
    output.failure(failure)
    return EXIT_REFUSED


def _wants_json(words: list[str]) -> bool:
    options = words[: words.index("--")] if "--" in words else words
    return "--json" in options


def _built(module: ModuleType, name: str) -> Any:
    group: typer.Typer | None = getattr(module, "app", None)
    if group is None:
        group = typer.Typer(add_completion=False)
        epilog = examples(*module.EXAMPLES) if hasattr(module, "EXAMPLES") else None
        group.command(name=name, cls=Command, epilog=epilog)(module.command)
    built = typer.main.get_command(group)
    built.name = name
    return built


def _version() -> str:
    # The commands run from their checkout, whose number is this one.
    pyproject = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    return str(pyproject["project"]["version"])
