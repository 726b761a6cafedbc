"""Every Python snippet of the README runs, against a real worker."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from arq.connections import RedisSettings

from quota.rules import Rules
from worker.deps import Deps
from worker.main import run_worker

ApplyTiers = Callable[[Deps, dict[str, Any]], Awaitable[Rules]]
ROOT = Path(__file__).parents[2]
SNIPPETS = re.findall(
    r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE
)


async def test_the_twenty_lines_run(deps: Deps) -> None:
    script = next(snippet for snippet in SNIPPETS if "asyncio.run(main())" in snippet)
    # The snippet uses the default prefix; only this test's keys may be touched.
    script = script.replace(
        'os.environ["REDIS_URL"]', f'os.environ["REDIS_URL"], prefix="{deps.keys.prefix}"'
    )
    stop = asyncio.Event()
    working = asyncio.create_task(run_worker(deps.settings, stop=stop))
    environment = {**os.environ, "REDIS_URL": deps.settings.quota_redis, "PYTHONPATH": str(ROOT)}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        script,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    stdout, stderr = await process.communicate()
    stop.set()
    await working

    assert process.returncode == 0, stderr.decode()
    assert b"feature_not_in_tier" in stdout


async def test_what_is_held_and_taken_back_in_the_readme_is(
    deps: Deps, apply_tiers: ApplyTiers, capsys: pytest.CaptureFixture[str]
) -> None:
    tier = {"limits": {"*": {"max": 5000, "per": "day"}}}
    await apply_tiers(deps, {"default_tier": "free", "tiers": {"free": tier}})
    namespace = run(next(snippet for snippet in SNIPPETS if "quota.reserve(" in snippet))
    await deps.quota.consume("user-1", "conversations", key="request-42")

    assert await namespace["answer"](deps.quota, "hello") == "HELLO"
    await namespace["undo"](deps.quota)

    balance = await deps.quota.balance("user-1")
    assert {name: state.used for name, state in balance.limits.items()} == {
        "tokens/day": 5,
        "conversations/day": 0,
    }
    assert "1 0 None" in capsys.readouterr().out.splitlines()


async def test_the_readme_s_test_in_memory_passes() -> None:
    namespace = run(next(snippet for snippet in SNIPPETS if "InMemoryQuota" in snippet))

    await namespace["test_the_third_export_is_denied"]()


def run(snippet: str) -> dict[str, Any]:
    """What *snippet* defines."""
    namespace: dict[str, Any] = {}
    exec(snippet, namespace)
    return namespace


async def test_the_two_lines_for_stock_arq_reach_the_log(deps: Deps) -> None:
    snippet = next(snippet for snippet in SNIPPETS if "enqueue_job" in snippet)
    namespace = run(
        snippet.replace(
            "settings, job_serializer",
            f"settings, default_queue_name={deps.settings.queue_name!r}, job_serializer",
        )
    )
    await namespace["enqueue"](RedisSettings.from_dsn(deps.settings.queue_redis))
    stop = asyncio.Event()
    working = asyncio.create_task(run_worker(deps.settings, stop=stop))
    try:
        async with asyncio.timeout(60):
            while not await recorded(deps):
                await asyncio.wait([working], timeout=0.05)
    finally:
        stop.set()
        await working


async def recorded(deps: Deps) -> int:
    async with deps.database.connection() as connection:
        return int(
            await connection.fetchval("SELECT count(*) FROM usage_logs WHERE key = 'export-7'")
        )
