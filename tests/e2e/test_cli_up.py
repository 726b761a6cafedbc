"""`allotment up` and `serve`: what they print is there, and nothing is left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen
from uuid import uuid4

import psutil
import pytest

from service.embedded import EmbeddedServers

ROOT = Path(__file__).parents[2]
PROGRAM = [sys.executable, "-c", "from cli.main import main; main()"]
SECONDS_MAX = 120
WITH_THE_GRANT = "25"  # a grant of 5, and the allowance of the default tier


@pytest.fixture
def directory(open_tmp_dir: Path) -> Iterator[Path]:
    """A working directory of this test, which PostgreSQL's own user may enter."""
    path = open_tmp_dir / f"cli-{uuid4().hex[:8]}"
    path.mkdir()
    path.chmod(0o711)
    yield path
    shutil.rmtree(path, ignore_errors=True)


def environment(**changes: str) -> dict[str, str]:
    named = {"DATABASE_URL", "REDIS_URL", "QUOTA_REDIS_URL", "QUEUE_REDIS_URL"}
    kept = {name: value for name, value in os.environ.items() if name not in named}
    return kept | {"PYTHONPATH": str(ROOT), "WEB_PORT": "0", "METRICS_PORT": "0"} | changes


@contextmanager
def running(
    *words: str, directory: Path, **changes: str
) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """A command that runs until it is stopped, and the object that it printed when it was ready."""
    with subprocess.Popen(
        [*PROGRAM, *words, "--json"],
        cwd=directory,
        env=environment(**changes),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            yield process, json.loads(process.stdout.readline())
        finally:
            process.kill()


def call(*words: str, directory: Path, **changes: str) -> tuple[int, dict[str, Any]]:
    ended = subprocess.run(
        [*PROGRAM, *words, "--json"],
        cwd=directory,
        env=environment(**changes),
        stdout=subprocess.PIPE,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    return ended.returncode, json.loads(ended.stdout)


def fetched(url: str) -> tuple[int, str, str]:
    try:
        with urlopen(url, timeout=SECONDS_MAX) as answer:
            return answer.status, answer.headers["content-type"], answer.read().decode()
    except HTTPError as error:
        with error:
            return error.code, error.headers["content-type"], error.read().decode()


def test_up_serves_what_it_prints_and_the_other_commands_find_it(directory):
    with running("up", directory=directory) as (up, places):
        servers = psutil.Process(up.pid).children(recursive=True)
        ready = fetched(f"{places['api']}/readyz")
        api_metrics = fetched(f"{places['api']}/metrics")
        nothing = fetched(f"{places['api']}/v1/nothing")
        worker_metrics = fetched(places["metrics"])
        granted = call("grant", "u", "5", directory=directory)
        balance = call("balance", "u", directory=directory)
        second = call("up", directory=directory)
        up.send_signal(signal.SIGTERM)
        assert up.stdout is not None
        rest = up.stdout.read()
        code = up.wait(SECONDS_MAX)

    assert places["tiers_version"] == 1
    assert (ready[0], json.loads(ready[2])["status"]) == (200, "ready")
    assert 'route="/readyz",status="200"' in api_metrics[2]
    assert nothing[:2] == (404, "application/problem+json")
    assert "allotment_records_applied_total" in worker_metrics[2]
    assert granted[0] == 0
    assert (balance[0], balance[1]["credits"]) == (0, WITH_THE_GRANT)
    assert second[0] == 2
    assert second[1]["error"]["code"] == "data_directory_in_use"
    assert (code, rest) == (0, "")
    assert not any(server.is_running() for server in servers)
    assert not (directory / ".allotment" / "addresses.json").exists()


def test_what_up_kept_is_there_for_the_next_command_even_when_it_was_killed(directory):
    with running("up", directory=directory) as (up, _):
        call("grant", "u", "5", directory=directory)
        up.kill()
        up.wait(SECONDS_MAX)

    code, balance = call("balance", "u", directory=directory)

    assert (directory / ".allotment" / "addresses.json").exists()
    assert (code, balance["credits"]) == (0, WITH_THE_GRANT)


def test_a_port_that_is_taken_is_told_with_its_setting(directory, servers):
    with running(
        "serve", directory=directory, DATABASE_URL=servers.database_url, REDIS_URL=servers.redis_url
    ) as (_, places):
        port = places["api"].rpartition(":")[2]
        urls = {"DATABASE_URL": servers.database_url, "REDIS_URL": servers.redis_url}
        code, answer = call("serve", directory=directory, WEB_PORT=port, **urls)

    assert code == 2
    assert (answer["error"]["code"], answer["error"]["field"]) == ("port_in_use", "WEB_PORT")
    assert not (directory / ".allotment").exists()


async def test_serve_is_alive_but_not_ready_without_the_schema(directory, copy_of, redis_url):
    async with copy_of("template1") as url:
        with running("serve", directory=directory, DATABASE_URL=url, REDIS_URL=redis_url) as (
            serve,
            places,
        ):
            alive = fetched(f"{places['api']}/healthz")
            status, kind, body = fetched(f"{places['api']}/readyz")
            serve.send_signal(signal.SIGINT)
            code = serve.wait(SECONDS_MAX)

    problem = json.loads(body)
    assert alive[0] == 200
    assert (status, kind) == (503, "application/problem+json")
    assert problem["checks"]["postgresql"] == problem["checks"]["redis"] == "ok"
    assert "allotment migrate" in problem["checks"]["migrations"]
    assert code == 0


def test_serve_names_the_server_that_went_away(directory, database_url):
    with EmbeddedServers(directory / "redis-only", with_postgres=False) as redis:
        urls = {"DATABASE_URL": database_url, "REDIS_URL": redis.redis_url}
        with running("serve", directory=directory, **urls) as (_, places):
            before = fetched(f"{places['api']}/readyz")
            redis.stop()
            status, _, body = fetched(f"{places['api']}/readyz")

    assert before[0] == 200
    assert status == 503
    assert json.loads(body)["checks"] == {
        "postgresql": "ok",
        "migrations": "ok",
        "redis": "cannot be used",
    }
