"""The command: options in, exit code out."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from typing import TYPE_CHECKING, Annotated

import asyncpg
import typer
from redis.exceptions import RedisError
from rich.console import Console

from cli.demo.errors import DemoError
from cli.demo.run import Size, run_demo
from quota.errors import QuotaError
from service.server_errors import ServerError
from service.settings import SettingsError

if TYPE_CHECKING:
    from cli.demo.report import Report

__all__ = ["command"]

_RECORDS_MAX, _USERS_MAX = 1_000_000, 100_000  # the ledger of answers is kept in memory
_SEED_MAX = 2**63 - 1
# A server that went away under the demo.
_OUTAGES = (OSError, RedisError, asyncpg.PostgresError, asyncpg.InterfaceError, QuotaError)
_INTERRUPTED, _TERMINATED = 130, 143  # as a shell says it: 128 and the signal


def command(
    records: Annotated[
        int, typer.Option(min=1, max=_RECORDS_MAX, help="Calls of the day.")
    ] = 40_000,
    users: Annotated[int, typer.Option(min=1, max=_USERS_MAX, help="Users of the day.")] = 2_000,
    seed: Annotated[
        int, typer.Option(min=0, max=_SEED_MAX, help="The same seed makes the same day.")
    ] = 1,
    *,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object as the last line.")
    ] = False,
) -> None:
    """The main job on real input: a day of use, a real worker, and an audit of every record.

    Runs in a scratch database and key space of its own, which are dropped at the end.

    Examples:

      allotment demo

      allotment demo --records 500000 --users 20000

      allotment demo --json | tail -1

    Exit code: 0 when nothing was lost, counted twice or let past a limit; 1 when something was,
    or the demo could not be run; 2 for a wrong option.
    """
    errors = Console(stderr=True)
    try:
        report, terminated = asyncio.run(_run(Size(records, users, seed), errors))
    except KeyboardInterrupt:
        errors.print("demo: interrupted; everything is stopped", highlight=False)
        raise typer.Exit(_INTERRUPTED) from None
    except (DemoError, ServerError, SettingsError, *_OUTAGES) as error:
        errors.print(f"error: {error}", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(1) from None
    if report is None:
        errors.print("demo: terminated; everything is stopped", highlight=False)
        raise typer.Exit(_TERMINATED if terminated else 1)
    report.show(errors if as_json else Console())
    if as_json:
        print(json.dumps(report.as_dict()))
    raise typer.Exit(0 if report.sound else 1)


async def _run(size: Size, console: Console) -> tuple[Report | None, bool]:
    """The report, or None when SIGTERM ended the run; Ctrl-C is asyncio's to raise."""
    task = asyncio.current_task()
    assert task is not None
    terminated = False

    def end() -> None:
        nonlocal terminated
        terminated = True
        task.cancel()

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, end)
    with contextlib.suppress(asyncio.CancelledError):
        return await run_demo(size, console), False
    if not terminated:
        raise asyncio.CancelledError
    return None, True
