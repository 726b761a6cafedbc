"""The run from the first server to the last: set up, seeds, the day, wait, audit."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from redis.asyncio import Redis

from cli.demo.audit import audit
from cli.demo.day import day_of_use
from cli.demo.drift import drift
from cli.demo.drive import drive
from cli.demo.errors import DemoError
from cli.demo.ledger import Ledger
from cli.demo.outcome import read_tallies, read_use, totals
from cli.demo.people import busyness, move_in, people
from cli.demo.progress import live
from cli.demo.report import Report
from cli.demo.scratch import scratch
from cli.demo.seeds import ARQ_KEY, USER_002, differences, prepare_seeds, send_seeds
from cli.demo.supervisor import supervised
from quota.client import Quota
from quota.keys import Keys
from quota.values import parse_user_id
from service.database import Database, statement
from service.embedded import running_servers
from service.migrations import upgrade
from service.settings import load_settings
from service.tiers import apply_rules, read_tiers_file

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from rich.console import Console

    from cli.demo.people import Person
    from cli.demo.supervisor import Supervisor
    from quota.rules import Rules
    from service.settings import Settings

__all__ = ["Size", "run_demo"]

TIERS = Path(__file__).with_name("tiers.toml")
_POOL_MAX = 6
_TIMEOUT_S = 5.0  # of one call to Redis: a small machine does everything at once here
_LOOK_S = 0.05
_STUCK_S = 90.0  # without progress; a job of a killed worker waits for 40 s
_SAMPLE = 200  # users whose standing in Redis is compared: the busiest


@dataclass(frozen=True, slots=True)
class Size:
    """How much the day is: calls, users, and the seed of its randomness."""

    calls: int
    users: int
    seed: int


@dataclass(frozen=True, slots=True)
class Stage:
    """Everything that a run works with."""

    settings: Settings
    database: Database
    redis: Redis
    keys: Keys
    rules: Rules
    quota: Quota
    worker: Supervisor
    console: Console


async def run_demo(size: Size, console: Console) -> Report:
    """Do it all, and leave nothing behind.

    Raises:
        DemoError, SettingsError, ServerError: it cannot be run, or does not end.
    """
    began = time.monotonic()
    random = Random(size.seed)  # noqa: S311 - a load that can be repeated is no secret
    everybody = people(size.users, random)
    async with _stage(console, [person for person in everybody if person.known]) as stage:
        ledger = Ledger()
        await send_seeds(stage.quota, stage.settings, ledger)
        calls = day_of_use(everybody, busyness(len(everybody)), size.calls, random)
        started = time.monotonic()
        with live(ledger, calls_max=size.calls, console=console) as progress:
            watch = asyncio.create_task(progress.watch(lambda: _lines(stage)))
            try:
                await drive(stage.quota, calls, ledger, advanced=progress.advanced)
                await _all_applied(stage)
            finally:
                watch.cancel()
                await asyncio.gather(watch, return_exceptions=True)
        seconds = time.monotonic() - started
        _tell(console, "everything is applied; auditing")
        return await _report(stage, ledger, seconds=seconds, began=began)


@asynccontextmanager
async def _stage(console: Console, known: list[Person]) -> AsyncIterator[Stage]:
    """Servers, scratch database, users and worker, in this order; taken down in the other."""
    settings = load_settings()
    embedded = settings.needs_postgres and settings.needs_redis
    _tell(
        console,
        "starting PostgreSQL and Redis"
        if embedded
        else "using the servers of DATABASE_URL and REDIS_URL",
    )
    async with (
        running_servers(settings, tell=lambda note: _tell(console, note)) as served,
        scratch(served, alone=embedded) as own,
    ):
        await upgrade(own.asyncpg_dsn)
        keys = Keys(own.key_prefix, own.shards)
        async with (
            Database(own.sqlalchemy_url, pool_max=_POOL_MAX) as database,
            Redis.from_url(own.quota_redis) as redis,
        ):
            rules = await apply_rules(database, read_tiers_file(TIERS))
            await move_in(database, known)
            await prepare_seeds(database, redis, keys, rules)
            async with (
                supervised(own, tell=lambda text: _tell(console, text)) as worker,
                Quota.from_url(
                    own.quota_redis, prefix=own.key_prefix, shards=own.shards, timeout_s=_TIMEOUT_S
                ) as quota,
            ):
                yield Stage(own, database, redis, keys, rules, quota, worker, console)


async def _lines(stage: Stage) -> tuple[int, int]:
    """Lines that are in the logs, and lines that are applied."""
    tallies = await read_tallies(stage.redis, stage.keys)
    async with stage.database.connection() as connection:
        applied: int = await connection.fetchval(statement("cli.demo", "lines_applied"))
    return tallies["lines"], applied


async def _all_applied(stage: Stage) -> None:
    """Wait until what was sent through arq has arrived, and every log is applied.

    Raises:
        DemoError: there is no progress any more.
    """
    last, since = (-1, -1), time.monotonic()
    while True:
        async with stage.database.connection() as connection:
            arrived = await connection.fetchval(
                statement("cli.demo", "record_arrived"), parse_user_id(USER_002).id, ARQ_KEY
            )
        lines = await _lines(stage)
        if arrived and lines[0] <= lines[1]:
            return
        if lines != last:
            last, since = lines, time.monotonic()
        elif time.monotonic() - since > _STUCK_S:
            raise DemoError(
                f"{lines[0]} lines were admitted, {lines[1]} applied, "
                f"and nothing more for {_STUCK_S:.0f} s. "
                f"The worker's last words: {stage.worker.last_words}"
            )
        await asyncio.sleep(_LOOK_S)


async def _report(stage: Stage, ledger: Ledger, *, seconds: float, began: float) -> Report:
    found = await audit(stage.database, ledger)
    busiest = Counter[str]()
    for (user, _, _), count in ledger.outcomes.items():
        busiest[user] += count
    wrong = await drift(
        stage.database, stage.quota, [user for user, _ in busiest.most_common(_SAMPLE)]
    )
    async with stage.database.connection() as connection:
        wrong += await differences(connection)
    sums = await totals(stage.database)
    return Report(
        audit=found,
        tallies=await read_tallies(stage.redis, stage.keys),
        applied=sums["applied"],
        quarantined=sums["quarantined"],
        users=sums["users"],
        calls=ledger.calls,
        unanswered=len(ledger.unanswered),
        seconds=seconds,
        total_seconds=time.monotonic() - began,
        worker_restarts=stage.worker.restarts,
        differences=wrong,
        use=await read_use(stage.database, ledger, stage.rules),
    )


def _tell(console: Console, text: str) -> None:
    console.print(f"demo: {text}", highlight=False, markup=False, soft_wrap=True)
