"""`allotment replay`: runs scenario files on the real stack, with a clock of their own."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track

from cli.options import AsJson
from cli.output import Output
from cli.replay.format import MalformedScenarioError, Scenario, read_scenario
from cli.replay.run import Report, run_scenario
from cli.replay.stage import running_stage
from cli.session import run, settings_for
from service.settings import Settings

__all__ = ["EXAMPLES", "command"]

EXAMPLES = (
    "allotment replay tests/scenarios/limit_hard_month.json",
    "allotment replay last-month.json --json      what every step answered",
)
_MISMATCH = 1
_MALFORMED = 2
_PROGRESS_FILES_MIN = 10  # fewer are done before a line could be read

Files = Annotated[list[Path], typer.Argument(metavar="FILE…", help="Scenario files, as JSON.")]


def command(files: Files, *, as_json: AsJson = False) -> None:
    """Run scenario files on real servers, with a clock of their own, and compare.

    Each file gets an empty database and key space, on the servers of
    DATABASE_URL and REDIS_URL or on servers started for this run alone.
    What is there already stays as it is.

    Exits with 0 when all hold, with 1 when something differs, with 2 when
    a file is malformed: then nothing was run.
    """
    scenarios, malformed = _read(files)
    if malformed:
        _tell_malformed(malformed, as_json=as_json)
        raise typer.Exit(_MALFORMED)
    reports = run(_replay(settings_for(quiet=True), scenarios, Output(as_json=as_json)))
    failed = sum(not report.passed for report in reports)
    passed = len(reports) - failed
    if as_json:
        found = [report.as_dict() for report in reports]
        print(json.dumps({"passed": passed, "failed": failed, "files": found}))
    else:
        print(f"{passed} passed, {failed} failed")
    if failed:
        raise typer.Exit(_MISMATCH)


def _read(files: list[Path]) -> tuple[list[Scenario], list[MalformedScenarioError]]:
    scenarios: list[Scenario] = []
    malformed: list[MalformedScenarioError] = []
    for file in files:
        try:
            scenarios.append(read_scenario(file))
        except MalformedScenarioError as error:
            malformed.append(error)
    return scenarios, malformed


def _tell_malformed(malformed: list[MalformedScenarioError], *, as_json: bool) -> None:
    if as_json:
        messages = [str(error) for error in malformed]
        failure = {"code": "malformed_scenario", "field": "files", "message": messages[0]}
        print(json.dumps({"error": failure, "malformed": messages}))
        return
    for error in malformed:
        print(error, file=sys.stderr)


async def _replay(settings: Settings, scenarios: list[Scenario], output: Output) -> list[Report]:
    console = Console(stderr=True)
    silent = not console.is_terminal or len(scenarios) < _PROGRESS_FILES_MIN
    reports: list[Report] = []
    async with running_stage(settings, output) as stage:
        for scenario in track(
            scenarios, "replaying", console=console, disable=silent, transient=True
        ):
            report = await run_scenario(stage, scenario)
            reports.append(report)
            if not output.as_json:
                for line in report.lines():
                    print(line, flush=True)
    return reports
