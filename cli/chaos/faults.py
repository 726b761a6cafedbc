"""Does to the processes of a run what the schedule says, and undoes it: one thing at a time to each."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import asyncpg
import psutil
from redis.exceptions import RedisError

from cli.chaos.schedule import KINDS
from service.server_errors import ServerError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from cli.chaos.players import Player
    from cli.chaos.schedule import Fault
    from cli.chaos.stage import Stage
    from service.embedded_postgres import EmbeddedPostgres
    from service.embedded_redis import EmbeddedRedis

__all__ = ["Faults"]

_STOP_SECONDS_MAX = 10.0  # what a worker promises at SIGTERM
_GONE_SECONDS_MAX = 10.0
_APPLIED_SECONDS_MAX = 20.0  # before Redis is emptied: else that fault does not take place
_LOOK_S = 0.05
_SETTLED_S = 0.2  # in which Redis answers what its paused callers had sent


class Faults:
    """The faults of one run, and how often each took place."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.counts: Counter[str] = Counter(dict.fromkeys(KINDS, 0))
        self.slow_stops = 0
        servers = ("postgres", "redis")
        players = [player.name for player in [*stage.workers, *stage.producers]]
        self._locks = {name: asyncio.Lock() for name in [*servers, *players]}

    async def run(self, faults: Sequence[Fault], *, seconds: float) -> None:
        """Let all of *faults* happen, and return after so many *seconds*, when all is undone."""
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for fault in faults:
                await asyncio.sleep(max(0.0, began + fault.at_s - time.monotonic()))
                group.create_task(self._happen(fault))
            await asyncio.sleep(max(0.0, began + seconds - time.monotonic()))

    async def _happen(self, fault: Fault) -> None:
        whom, _, what = fault.kind.partition("_")
        if whom in ("worker", "producer"):
            players: Sequence[Player] = (
                self._stage.workers if whom == "worker" else self._stage.producers
            )
            player = players[fault.target % len(players)]
            async with self._locks[player.name]:
                self._tell(fault, player.name)
                happened = await self._to_player(player, what, fault.down_s)
        elif fault.kind == "redis_emptied":
            happened = await self._empty_redis(fault)
        else:
            async with self._locks["redis" if whom == "redis" else "postgres"]:
                self._tell(fault, "")
                happened = await self._to_server(fault.kind, fault.down_s)
        self.counts[fault.kind] += happened

    def _tell(self, fault: Fault, whom: str) -> None:
        self._stage.tell(f"{fault.at_s:5.1f} s  {fault.kind} {whom} {fault.down_s:.1f} s")

    async def _to_player(self, player: Player, what: str, down_s: float) -> bool:
        if not await player.is_ready():
            return False
        if what == "paused":
            player.send(signal.SIGSTOP)
            await asyncio.sleep(down_s)
            player.send(signal.SIGCONT)
            return True
        player.send(signal.SIGKILL if what == "killed" else signal.SIGTERM)
        if not await player.ended(seconds_max=_STOP_SECONDS_MAX):
            self.slow_stops += 1
            self._stage.tell(f"{player.name} did not end within {_STOP_SECONDS_MAX:.0f} s")
            player.send(signal.SIGKILL)
        return True

    async def _to_server(self, kind: str, down_s: float) -> bool:
        postgres, redis = self._stage.servers.postgres, self._stage.servers.redis
        assert postgres is not None
        assert redis is not None
        if kind == "backends_terminated":
            return await self._cut_backends()
        if kind == "redis_disconnected":
            return await self._cut_clients()
        server = redis if kind.startswith("redis") else postgres
        processes = _family(server)
        if kind.endswith("_paused"):
            await _paused(processes, down_s)
            return True
        number = {
            "postgres_killed": signal.SIGKILL,
            "postgres_stopped": signal.SIGQUIT,  # "immediate": no shutdown checkpoint
            "redis_killed": signal.SIGKILL,
            "redis_stopped": signal.SIGTERM,
        }[kind]
        processes[0].send_signal(number)
        await _gone(server, processes)
        await asyncio.sleep(down_s)
        await self.restart(server)
        return True

    async def restart(self, server: EmbeddedPostgres | EmbeddedRedis) -> None:
        """Start a server that ended, from what it had written."""
        assert server.process is not None
        if not server.process.running:
            server.spawn()  # from this thread, with which Linux would end it
        await asyncio.to_thread(server.wait_ready)

    async def _cut_backends(self) -> bool:
        """Cut the workers off from PostgreSQL, in the middle of a transaction if there is one."""
        try:
            connection = await asyncpg.connect(self._stage.settings.asyncpg_dsn)
        except (OSError, asyncpg.PostgresError):
            return False
        try:
            cut = await connection.fetchval(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
                "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            )
        finally:
            await connection.close()
        return bool(cut)

    async def _cut_clients(self) -> bool:
        try:
            await self._stage.redis.client_kill_filter(_type="normal", skipme=True)
        except RedisError:
            return False
        return True

    async def _empty_redis(self, fault: Fault) -> bool:
        """Take everything from Redis when all that was admitted is applied: nothing may be lost by it."""
        async with self._all_at_rest():
            self._tell(fault, "")
            until = time.monotonic() + _APPLIED_SECONDS_MAX
            while time.monotonic() < until:
                with contextlib.suppress(OSError, RedisError, asyncpg.PostgresError):
                    if not await self._stage.behind():
                        await self._stage.redis.flushall()
                        return True
                await asyncio.sleep(_LOOK_S)
        return False

    @asynccontextmanager
    async def _all_at_rest(self) -> AsyncIterator[None]:
        """Nothing else happens meanwhile, and no producer asks anything."""
        async with AsyncExitStack() as stack:
            for name in sorted(self._locks):
                await stack.enter_async_context(self._locks[name])
            for producer in self._stage.producers:
                producer.send(signal.SIGSTOP)
                stack.callback(producer.send, signal.SIGCONT)
            await asyncio.sleep(_SETTLED_S)
            yield


def _family(server: Any) -> list[psutil.Process]:
    """The processes of a server, the one that leads them first."""
    leader = psutil.Process(server.process.pid)
    return [leader, *leader.children(recursive=True)]


async def _paused(processes: Sequence[psutil.Process], seconds: float) -> None:
    try:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()
        await asyncio.sleep(seconds)
    finally:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()


async def _gone(server: Any, processes: Sequence[psutil.Process]) -> None:
    """Wait for all of them: PostgreSQL does not start while a backend of the last one lives."""
    until = time.monotonic() + _GONE_SECONDS_MAX
    while server.process.running or any(map(_lives, processes[1:])):
        if time.monotonic() > until:
            raise ServerError(f"{processes[0]} or a child of it did not end")
        await asyncio.sleep(_LOOK_S)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
