"""`allotment replay`: runs scenario files on the real stack, with a clock of their own."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track

from cli.replay.format import MalformedScenarioError, Scenario, read_scenario
from cli.replay.run import Report, run_scenario
from cli.replay.stage import running_stage
from service.log import configure_logging
from service.migrations import MigrationError
from service.server_errors import ServerError
from service.settings import Settings, SettingsError, load_settings

__all__ = ["command"]

_MISMATCH = 1
_MALFORMED = 2
_TERMINATED = 128 + signal.SIGTERM  # as a shell tells it
_PROGRESS_FILES_MIN = 10  # fewer are done before a line could be read


def command(
    files: Annotated[list[Path], typer.Argument(metavar="FILE…", help="Scenario files.")],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one object with what every step answered.")
    ] = False,
) -> None:
    """Run scenario files on real servers, with a clock of their own, and compare.

    Each file gets an empty database and key space on the servers of DATABASE_URL and REDIS_URL,
    else on servers started for this run. Nothing that is there already is touched.

    Exit code: 0 all hold, 1 there was a mismatch, 2 a file is not a scenario (nothing ran).

    Examples:

      allotment replay tests/scenarios/*.json

      allotment replay last-month.json --json
    """
    scenarios, malformed = _read(files)
    if malformed:
        for message in malformed:
            print(message, file=sys.stderr)
        if as_json:
            print(json.dumps({"passed": 0, "failed": 0, "malformed": malformed, "files": []}))
        raise typer.Exit(_MALFORMED)
    try:
        settings = load_settings()
        # A lost Redis is a warning elsewhere; here the file asked for it.
        configure_logging(settings.model_copy(update={"log_level": "error"}))
        reports = asyncio.run(_run(settings, scenarios, as_json=as_json))
    except (SettingsError, ServerError, MigrationError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(_MISMATCH) from None
    except asyncio.CancelledError:
        raise typer.Exit(_TERMINATED) from None
    failed = sum(not report.passed for report in reports)
    passed = len(reports) - failed
    if as_json:
        found = [report.as_dict() for report in reports]
        print(json.dumps({"passed": passed, "failed": failed, "files": found}, ensure_ascii=False))
    else:
        print(f"{passed} passed, {failed} failed")
    if failed:
        raise typer.Exit(_MISMATCH)


def _read(files: list[Path]) -> tuple[list[Scenario], list[str]]:
    scenarios, malformed = [], []
    for file in files:
        try:
            scenarios.append(read_scenario(file))
        except MalformedScenarioError as error:
            malformed.append(str(error))
    return scenarios, malformed


async def _run(settings: Settings, scenarios: list[Scenario], *, as_json: bool) -> list[Report]:
    # As Ctrl-C does: servers and databases of this run must not outlive it.
    task: asyncio.Task[Any] | None = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    console = Console(stderr=True)
    quiet = not console.is_terminal or len(scenarios) < _PROGRESS_FILES_MIN
    reports = []
    async with running_stage(settings, tell=lambda text: print(text, file=sys.stderr)) as stage:
        for scenario in track(
            scenarios, "replaying", console=console, disable=quiet, transient=True
        ):
            report = await run_scenario(stage, scenario)
            reports.append(report)
            if not as_json:
                for line in report.lines():
                    print(line, flush=True)
    return reports
