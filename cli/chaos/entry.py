"""The command: options in, one JSON line out."""

from __future__ import annotations

import json
import secrets
import sys
from typing import Annotated

import typer

from cli.chaos.errors import ChaosError
from cli.chaos.run import Outcome, run_chaos
from cli.demo.errors import DemoError
from cli.options import AsJson
from cli.session import run

__all__ = ["EXAMPLES", "command"]

EXAMPLES = (
    "allotment chaos",
    "allotment chaos --seconds 600 --seed 7",
    "allotment chaos --json 2>/dev/null | jq .lost",
)
_SECONDS_MAX = 86_400
_SEED_MAX = 2**31 - 1
_UNSOUND = 1


def command(
    *,
    seconds: Annotated[
        int, typer.Option(min=1, max=_SECONDS_MAX, help="How long there are load and faults.")
    ] = 60,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0, max=_SEED_MAX, help="The same seed makes the same calls and faults; random."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Kill, stop and pause real processes under load, and see that nothing is lost or counted twice.

    Starts a PostgreSQL, a Redis, two workers and three producers of its own, in a directory that
    goes with the run; servers that are named in the environment are left alone. A seeded schedule
    kills, stops, pauses and cuts off each of them, and empties Redis when all of it was applied.
    Then everything settles, and the producers' books of what they were told are held against
    PostgreSQL, and Redis against PostgreSQL, user by user. Progress goes to stderr, one JSON line
    to stdout.

    Redis runs with DURABILITY=always here, so that the zeros are a promise: an answer is given
    after its write was synced. With everysec, a process that is killed loses nothing either, as
    the kernel has what it wrote; a machine that loses power loses up to two seconds of answers.

    Exits with 0 when lost, double_counted, over_admitted and drift_after_heal are 0, else with 1.
    """
    seed = secrets.randbelow(1_000_000) if seed is None else seed
    try:
        outcome = run(run_chaos(seconds, seed, tell=_tell))
    except (ChaosError, DemoError) as error:
        if as_json:
            failure = {"code": "not_settled", "field": None, "message": str(error)}
            print(json.dumps({"error": failure, "seed": seed}))
        else:
            print(f"error: {error} (seed {seed})", file=sys.stderr)
        raise typer.Exit(_UNSOUND) from None
    _tell(_verdict(outcome))
    print(json.dumps(outcome.as_dict()), flush=True)
    if not outcome.sound:
        raise typer.Exit(_UNSOUND)


def _verdict(outcome: Outcome) -> str:
    found = outcome.as_dict()
    names = ("lost", "double_counted", "over_admitted", "drift_after_heal")
    counts = ", ".join(f"{name.replace('_', ' ')} {found[name]}" for name in names)
    count = sum(outcome.faults.values())
    if outcome.sound:
        return f"sound after {count} faults: {counts}"
    return f"NOT sound after {count} faults: {counts}; {outcome.audit}"


def _tell(text: str) -> None:
    print(f"chaos: {text}", file=sys.stderr, flush=True)
