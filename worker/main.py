"""Builds and runs one worker process."""

from __future__ import annotations

import asyncio
import signal
from datetime import UTC
from typing import TYPE_CHECKING, Any

import structlog
from arq import Worker, func
from arq.connections import ArqRedis
from prometheus_client import start_http_server
from redis.asyncio import ConnectionPool
from redis.exceptions import RedisError

from service.jobs import QUARANTINE_JOB, RECORD_USAGE, deserialize_job, serialize_job
from worker.deps import SOCKET_TIMEOUT_S, Deps, open_deps
from worker.jobs import quarantine_job, record_usage
from worker.load_server import LoadServer
from worker.ticks import TICKS, ByHand

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from service.settings import Settings

__all__ = ["run_worker"]

_JOB_TIMEOUT_S = 30  # longer than any job runs; a dead worker's job waits for so long and 10 s more
_STOP_SECONDS_MAX = 8  # for running jobs at SIGTERM; supervisors kill after 10
_CLOSE_SECONDS_MAX = 1  # for arq's own good-bye to Redis
_CANCEL_AGAIN_S = 0.5
_RETRY_S = 1  # before jobs run again after Redis was away
_POLL_DELAY_S = 0.1
_TRIES_MAX = 1_000_000  # a job is given up by a person, not by a number
_EXPIRES_MS = 28 * 24 * 3600 * 1000  # a job may wait as long as an outage lasts
_QUEUE_READ_MAX = 2_000  # orphans of killed workers stay at the head for a while; look behind them
_log = structlog.get_logger("allotment.worker")


async def run_worker(settings: Settings, *, stop: asyncio.Event | None = None) -> None:
    """Work until SIGTERM, SIGINT or *stop*; then finish what is under way.

    Raises:
        NoTiersError, ValueError: see `worker.deps.open_deps`.
    """
    stop = stop or asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with open_deps(settings) as deps:
        server, thread = start_http_server(
            settings.metrics_port, settings.metrics_host, registry=deps.registry
        )
        _log.info(
            "worker.started", metrics=f"http://{settings.metrics_host}:{server.server_port}/metrics"
        )
        try:
            await _work(deps, stop)
        finally:
            server.shutdown()
            server.server_close()
            await asyncio.to_thread(thread.join)
            _log.info("worker.stopped")


async def _work(deps: Deps, stop: asyncio.Event) -> None:
    by_hand = ByHand(deps)
    jobs = _Jobs(lambda: _jobs_worker(deps))
    ticks = _Jobs(lambda: _ticks_worker(deps, by_hand), failed=by_hand.begin)
    loads = LoadServer(deps.redis, deps.keys, deps.loader, deps.metrics)
    running = [
        asyncio.create_task(jobs.run(), name="jobs"),
        asyncio.create_task(ticks.run(), name="ticks"),
        asyncio.create_task(by_hand.run(), name="ticks by hand"),
        asyncio.create_task(loads.serve(), name="loads"),
        asyncio.create_task(stop.wait(), name="stop"),
    ]
    try:
        done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()  # neither of the others ends by itself, but by a mistake of ours
    finally:
        await asyncio.gather(jobs.finish(), ticks.finish(), by_hand.finish())
        await _cancel(running)
        await asyncio.gather(jobs.close(), ticks.close())


async def _cancel(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """End *tasks*, asking again where it takes that: a read that just had its answer may not hear the first."""
    pending = {task for task in tasks if not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=_CANCEL_AGAIN_S)


class _Pool(ArqRedis):
    """arq's connections, closed by the name that arq still knows."""

    async def close(self, close_connection_pool: bool | None = None) -> None:
        """As `aclose`. redis-py warns of its own `close`, and two loops can not mute that at once."""
        await self.aclose(close_connection_pool)


class _Jobs:
    """arq in a loop: it ends whenever Redis is away for a moment, or full, and we do not (FAULTS 2.16)."""

    def __init__(
        self, make: Callable[[], Worker], *, failed: Callable[[], None] = lambda: None
    ) -> None:
        self._make = make
        self._failed = failed
        self._worker = make()

    async def run(self) -> None:
        """Run jobs until cancelled."""
        while True:
            try:
                await self._worker.async_run()
            except (RedisError, OSError) as error:
                _log.warning("jobs.redis_unreachable", kind=type(error).__name__, error=str(error))
                self._failed()
            except UnicodeDecodeError:
                await self._drop_undecodable()
            await self.finish()
            await self.close()
            await asyncio.sleep(_RETRY_S)
            self._worker = self._make()

    async def _drop_undecodable(self) -> None:
        """Take ids out of the queue that are no text: arq dies of them at each start (FAULTS 2.14)."""
        queue, redis = self._worker.queue_name, self._worker.pool
        for member in await redis.zrange(queue, 0, -1):
            if member.decode(errors="replace").encode() != member:
                await redis.zrem(queue, member)
                _log.error("jobs.id_not_text", dropped=repr(member))

    async def finish(self) -> None:
        """Take no more jobs, and wait for those under way."""
        self._worker.allow_pick_jobs = False
        if self._worker.tasks:
            await asyncio.wait(list(self._worker.tasks.values()), timeout=_STOP_SECONDS_MAX)

    async def close(self) -> None:
        """Let arq say good-bye to Redis, if it is there."""
        pool = self._worker.pool
        try:
            async with asyncio.timeout(_CLOSE_SECONDS_MAX):
                await self._worker.close()
        except (asyncio.CancelledError, RedisError, OSError, TimeoutError):
            await pool.aclose(close_connection_pool=True)


def _jobs_worker(deps: Deps) -> Worker:
    """The jobs that producers enqueue."""
    functions = [
        func(record_usage, name=RECORD_USAGE),
        func(quarantine_job, name=QUARANTINE_JOB),
    ]
    return _arq_worker(
        deps,
        functions=functions,
        queue_name=deps.settings.queue_name,
        max_jobs=deps.settings.worker_jobs_max,
    )


def _ticks_worker(deps: Deps, by_hand: ByHand) -> Worker:
    """Our own crons, in a queue of their own: behind a backlog of producers' jobs they would never run."""
    return _arq_worker(
        deps,
        cron_jobs=[tick.cron() for tick in TICKS],
        queue_name=f"{deps.settings.queue_name}:ticks",
        max_jobs=len(TICKS),  # one of each kind
        on_job_start=by_hand.rest,
    )


def _arq_worker(deps: Deps, **options: Any) -> Worker:
    pool = _Pool(  # its `from_url` would pass our serializers on to the connections
        ConnectionPool.from_url(deps.settings.queue_redis, socket_timeout=SOCKET_TIMEOUT_S),
        job_serializer=serialize_job,
        job_deserializer=deserialize_job,
        expires_extra_ms=_EXPIRES_MS,
    )
    return Worker(
        redis_pool=pool,
        ctx={"deps": deps},
        handle_signals=False,
        job_completion_wait=_STOP_SECONDS_MAX,
        job_timeout=_JOB_TIMEOUT_S,
        keep_result=0,
        poll_delay=_POLL_DELAY_S,
        queue_read_limit=_QUEUE_READ_MAX,
        max_tries=_TRIES_MAX,
        expires_extra_ms=_EXPIRES_MS,
        job_serializer=serialize_job,
        job_deserializer=deserialize_job,
        timezone=UTC,
        log_results=False,
        **options,
    )
