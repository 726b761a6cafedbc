"""`allotment demo` as a user runs it, and its audit, which has to be able to fail."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import psutil
import pytest
import typer
from redis.asyncio import Redis
from typer.testing import CliRunner

from cli.demo import command
from cli.demo.audit import Audit, audit
from cli.demo.drift import drift
from cli.demo.ledger import Ledger
from cli.demo.people import Person, move_in
from cli.demo.run import TIERS
from cli.demo.scratch import scratch
from service.database import Database
from service.migrations import upgrade
from service.settings import load_settings
from service.tiers import apply_rules, read_tiers_file
from worker.deps import open_deps

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from worker.deps import Deps

ROOT = Path(__file__).parents[2]
LOGGED_TWICE = """
INSERT INTO usage_logs (user_id, action, amount, credits_consumed, key, created_at)
SELECT user_id, action, amount, credits_consumed, key, created_at FROM usage_logs WHERE key = 'k0'
"""
LOGGED_UNASKED = """
INSERT INTO usage_logs (user_id, action, amount, credits_consumed, key)
SELECT user_id, action, 1, 0, 'nobody-asked' FROM usage_logs WHERE key = 'k0'
"""
ARQ_IN_PROGRESS = b"arq:in-progress:"  # arq lets those of its crons expire, after a minute
SECONDS_MAX = 180  # before a run is taken for hung


def demo_environment(data_dir: Path) -> dict[str, str]:
    ours = ("DATABASE_URL", "REDIS_URL", "QUOTA_REDIS_URL", "QUEUE_REDIS_URL")
    return {name: value for name, value in os.environ.items() if name not in ours} | {
        "ALLOTMENT_DATA_DIR": str(data_dir)
    }


def run_demo(data_dir: Path, *options: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cli.demo", *options],
        cwd=ROOT,
        env=demo_environment(data_dir) | more,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS_MAX,
    )


def test_a_day_of_use_is_counted_once_and_within_every_limit(open_tmp_dir: Path) -> None:
    ended = run_demo(open_tmp_dir / "demo", "--records", "2000", "--users", "50", "--json")

    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    assert (found["lost"], found["double_counted"], found["over_admitted"]) == (0, 0, 0)
    assert found["admitted"] == found["applied"] > 0
    assert found["denied"] > 0
    assert found["replayed"] > 0
    assert found["conflicts"] > 0
    assert found["records_per_second"] > 0
    assert found["seconds"] > 0
    assert found["differences"] == []
    assert found["worker_restarts"] == 0


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "many", "", "1000001", "9" * 30])
@pytest.mark.parametrize("option", ["--records", "--users"])
def test_a_wrong_size_is_refused_by_name(option: str, value: str) -> None:
    app = typer.Typer()
    app.command()(command)

    ended = CliRunner().invoke(app, [option, value], env={"COLUMNS": "200", "NO_COLOR": "1"})

    assert ended.exit_code == 2
    assert option in ended.stderr


def test_a_wrong_size_starts_nothing(tmp_path: Path) -> None:
    ended = run_demo(tmp_path / "never", "--records", "0")

    assert ended.returncode == 2
    assert "--records" in ended.stderr
    assert not (tmp_path / "never").exists()


def test_a_wrong_setting_is_told_in_one_line(tmp_path: Path) -> None:
    ended = run_demo(tmp_path / "never", SHARDS="many")

    assert ended.returncode == 1
    assert "error: SHARDS" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_a_run_that_is_stopped_leaves_nothing_behind(
    open_tmp_dir: Path, number: signal.Signals, code: int
) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cli.demo", "--records", "1000000", "--users", "100",
        cwd=ROOT, env=demo_environment(open_tmp_dir / f"stopped-{code}"),
        stderr=asyncio.subprocess.PIPE,
        # A shell that runs the tests in the background has Ctrl-C ignored, which a child inherits.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stderr is not None
    async with asyncio.timeout(SECONDS_MAX):
        async for line in process.stderr:
            if b"% of the calls" in line:
                break
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(number)
        _, said = await process.communicate()

    assert process.returncode == code, said
    assert len(children) > 2
    assert not [
        child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE
    ]


async def test_servers_that_were_given_are_used_and_left_as_they_were(
    open_tmp_dir: Path, postgres_url: str, redis_url: str
) -> None:
    before = await contents(postgres_url, redis_url)

    ended = await asyncio.to_thread(
        run_demo, open_tmp_dir / "unused", "--records", "300", "--users", "5", "--json",
        DATABASE_URL=postgres_url, REDIS_URL=redis_url,
    )  # fmt: skip

    assert ended.returncode == 0, ended.stderr
    assert await contents(postgres_url, redis_url) == before
    assert not (open_tmp_dir / "unused").exists()


async def contents(postgres_url: str, redis_url: str) -> tuple[set[str], set[bytes]]:
    """Names of databases and of keys."""
    settings = load_settings(database_url=postgres_url, redis_url=redis_url)
    async with (
        Database(settings.sqlalchemy_url, pool_max=1) as database,
        database.connection() as connection,
    ):
        names = {
            row["datname"] for row in await connection.fetch("SELECT datname FROM pg_database")
        }
    async with Redis.from_url(redis_url) as redis:
        keys = set(await redis.keys("*"))
    return names, {key for key in keys if not key.startswith(ARQ_IN_PROGRESS)}


@asynccontextmanager
async def applied_day(postgres_url: str, redis_url: str) -> AsyncIterator[tuple[Deps, Ledger]]:
    """A scratch installation where a little was used, booked and applied."""
    settings = load_settings(database_url=postgres_url, redis_url=redis_url)
    async with scratch(settings, alone=False) as own:
        await upgrade(own.asyncpg_dsn)
        async with Database(own.sqlalchemy_url, pool_max=2) as database:
            await apply_rules(database, read_tiers_file(TIERS))
            await move_in(database, [Person("ann", "free", "Europe/Berlin", known=True)])
        async with open_deps(own) as deps:
            ledger = Ledger()
            for number in range(3):
                decision = await deps.quota.consume("ann", "image_generation", 2, key=f"k{number}")
                ledger.decided("ann", [decision], verb="consume")
            receipt = await deps.quota.record("ann", {"conversations": 1, "seconds": 300})
            ledger.decided("ann", receipt.decisions, verb="record")
            await deps.drain.run(seconds_max=30)
            yield deps, ledger


async def tampered(deps: Deps, ledger: Ledger, statement: str) -> Audit:
    async with deps.database.connection() as connection:
        assert not (await connection.execute(statement)).endswith(" 0")
    return await audit(deps.database, ledger)


async def test_an_untouched_day_is_sound(postgres_url: str, redis_url: str) -> None:
    async with applied_day(postgres_url, redis_url) as (deps, ledger):
        found = await audit(deps.database, ledger)

        assert found.sound
        assert found.burnt == 6_000_000
        assert await drift(deps.database, deps.quota, ["ann"]) == []


@pytest.mark.parametrize(
    ("statement", "lost", "double_counted"),
    [
        ("DELETE FROM usage_logs WHERE key = 'k1'", 1, 0),
        ("DELETE FROM usage_logs WHERE action = 'seconds'", 1, 0),
        (
            "UPDATE feature_usage SET usage_count = usage_count - 5 WHERE feature_name = 'seconds'",
            5,
            0,
        ),
        ("UPDATE usage_counters SET lifetime_used = 0 WHERE feature = 'seconds'", 300, 0),
        ("DELETE FROM usage_counters WHERE feature = 'conversations'", 1, 0),
        (
            "UPDATE feature_usage SET usage_count = 12 WHERE feature_name = 'image_generation'",
            0,
            6,
        ),
        (
            "UPDATE usage_counters SET lifetime_used = 2 WHERE feature = 'conversations'",
            0,
            1,
        ),
        (LOGGED_TWICE, 0, 1),
        (LOGGED_UNASKED, 0, 1),
    ],
)
async def test_the_audit_sees_what_is_lost_or_counted_twice(
    postgres_url: str, redis_url: str, statement: str, lost: int, double_counted: int
) -> None:
    async with applied_day(postgres_url, redis_url) as (deps, ledger):
        found = await tampered(deps, ledger, statement)

    assert (found.lost, found.double_counted) == (lost, double_counted)
    assert not found.sound


async def test_the_audit_sees_units_past_a_hard_limit(postgres_url: str, redis_url: str) -> None:
    async with applied_day(postgres_url, redis_url) as (deps, ledger):
        lowered = (
            "UPDATE tier_limits SET max = 4 WHERE tier = 'free' AND feature = 'image_generation'"
        )
        found = await tampered(deps, ledger, lowered)

    assert found.over_admitted == 2
    assert not found.sound


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE credit_grants SET left_micro = left_micro - 1",
        "DELETE FROM credit_entries WHERE ctid = (SELECT min(ctid) FROM credit_entries WHERE kind = 'burn')",
        "UPDATE users SET overage_micro = 7",
    ],
)
async def test_the_audit_sees_credits_that_went_astray(
    postgres_url: str, redis_url: str, statement: str
) -> None:
    async with applied_day(postgres_url, redis_url) as (deps, ledger):
        found = await tampered(deps, ledger, statement)

    assert found.credits_off > 0
    assert not found.sound


async def test_the_audit_sees_a_key_that_was_admitted_anew(
    postgres_url: str, redis_url: str
) -> None:
    async with applied_day(postgres_url, redis_url) as (deps, ledger):
        decision = await deps.quota.check("ann", "conversations", key="k-again")
        ledger.decided("ann", [decision], verb="consume")
        ledger.decided("ann", [decision], verb="consume")

        found = await audit(deps.database, ledger)

    assert found.double_counted == 1
    assert found.lost == 1


async def test_a_call_without_an_answer_may_be_counted_or_not(
    postgres_url: str, redis_url: str
) -> None:
    async with applied_day(postgres_url, redis_url) as (deps, ledger):
        ledger.unknown("ann", "seconds", key=f"never-arrived-{uuid4()}")
        ledger.unknown("ann", "seconds", key="arrived")
        await deps.quota.consume("ann", "seconds", 10, key="arrived")
        await deps.drain.run(seconds_max=30)

        assert (await audit(deps.database, ledger)).sound


async def test_drift_of_redis_is_seen(postgres_url: str, redis_url: str) -> None:
    async with applied_day(postgres_url, redis_url) as (deps, _):
        async with deps.database.connection() as connection:
            await connection.execute(
                "UPDATE usage_counters SET day_used = 7 WHERE feature = 'image_generation'"
            )

        assert await drift(deps.database, deps.quota, ["ann"]) == [
            "ann image_generation/day used: Redis 6, PostgreSQL 7"
        ]
