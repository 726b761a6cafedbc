"""`allotment worker`: one worker, as `python -m worker`."""

from __future__ import annotations

import asyncio

from cli.listening import free_port, until_connectable, url_of
from cli.options import AsJson
from cli.output import Output
from cli.session import run, serving, settings_for
from service.migrations import require_current
from worker.main import run_worker

__all__ = ["EXAMPLES", "command"]

EXAMPLES = (
    "allotment worker",
    "METRICS_PORT=0 allotment worker    a second one on the same machine",
    "REDIS_URL=redis://cache DATABASE_URL=postgresql://db/allotment allotment worker",
)


def command(*, as_json: AsJson = False) -> None:
    """Apply the usage log to PostgreSQL and load users, until SIGTERM or Ctrl-C."""
    run(_work(Output(as_json=as_json)))


async def _work(output: Output) -> None:
    async with serving(settings_for(quiet=False), output) as settings:
        await require_current(settings.asyncpg_dsn)
        host = settings.metrics_host
        port = free_port(host, settings.metrics_port, setting="METRICS")
        stop = asyncio.Event()
        served = settings.model_copy(update={"metrics_port": port})
        worker = asyncio.create_task(run_worker(served, stop=stop))
        try:
            await until_connectable(host, port, unless=worker)
            if not worker.done():
                url = url_of(host, port, "/metrics")
                output.result({"metrics": url}, f"metrics   {url}")
            await asyncio.wait([worker])
        finally:
            stop.set()
            await worker
