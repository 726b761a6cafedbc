"""Kill -9 the worker in the middle of a day: nothing is lost, and nothing is counted twice."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SECONDS_MAX = 180
WORKER = re.compile(r"worker started as process (\d+)|started again as process (\d+)")
TENTH = re.compile(r"(\d+) % of the calls")


async def test_a_worker_killed_twice_in_a_day_loses_and_doubles_nothing(open_tmp_dir: Path) -> None:
    ours = ("DATABASE_URL", "REDIS_URL", "QUOTA_REDIS_URL", "QUEUE_REDIS_URL")
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cli.demo", "--records", "30000", "--users", "300", "--json",
        cwd=ROOT, env=environment | {"ALLOTMENT_DATA_DIR": str(open_tmp_dir / "killed")},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None

    async with asyncio.timeout(SECONDS_MAX):
        said = await kill_at(process.stderr, tenths=[20, 60])
        answer = await process.stdout.read()
        await process.wait()

    assert process.returncode == 0, said
    found = json.loads(answer.decode().splitlines()[-1])
    assert found["worker_restarts"] == 2, said
    assert (found["lost"], found["double_counted"], found["over_admitted"]) == (0, 0, 0)
    assert found["admitted"] == found["applied"] > 0
    assert found["differences"] == []


async def kill_at(stderr: asyncio.StreamReader, *, tenths: list[int]) -> str:
    """Kill the worker when so many percent of the calls are made; return all that was said."""
    worker, said = 0, ""
    async for raw in stderr:
        line = raw.decode()
        said += line
        if match := WORKER.search(line):
            worker = int(match[1] or match[2])
        elif (match := TENTH.search(line)) and tenths and int(match[1]) >= tenths[0] and worker:
            tenths.pop(0)
            os.kill(worker, signal.SIGKILL)
            worker = 0  # until the next one is announced
    return said
