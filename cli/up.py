"""`allotment up`: servers, schema, tiers, worker and api in one process, stopped in order."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api.server import ApiServer
from cli.addresses import published
from cli.listening import free_port, listening_socket, until_connectable, url_of
from cli.migrate import migrated
from cli.options import AsJson
from cli.output import Output
from cli.session import run, settings_for
from cli.tiers import read_rules
from service.database import Database
from service.embedded import running_servers
from service.tiers import apply_rules, stored_rules
from service.urls import redacted
from worker.main import run_worker

if TYPE_CHECKING:
    import socket

    from quota.rules import Rules
    from service.settings import Settings

__all__ = ["EXAMPLES", "command"]

EXAMPLES = (
    "allotment up",
    "allotment up --tiers my-tiers.toml          the tiers of a new database",
    "WEB_PORT=0 METRICS_PORT=0 allotment up      on any free ports",
)
_TIERS_DEFAULT = Path(__file__).parents[1] / "tiers.toml"


def command(
    *,
    tiers: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Tiers for a database that has none; tiers.toml, if not given."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run everything: PostgreSQL and Redis where none is named, worker and api; Ctrl-C stops it.

    While it runs, the other commands find its servers when they are called in this directory.
    """
    rules = None if tiers is None else read_rules(tiers)
    try:
        run(_up(Output(as_json=as_json), rules))
    except asyncio.CancelledError:
        return  # stopped while it was starting; that is what was asked


async def _up(output: Output, rules: Rules | None) -> None:
    settings = settings_for(quiet=False)
    async with AsyncExitStack() as stack:
        with output.step("starting PostgreSQL and Redis"):
            servers = running_servers(settings, tell=output.note)
            served = await stack.enter_async_context(servers)
        if settings.needs_postgres or settings.needs_redis:
            stack.enter_context(published(settings, served=served))
        await migrated(served, output)
        version = await _tiers_in_force(served, rules, output)
        await _run_all(served, output, version)


async def _tiers_in_force(settings: Settings, rules: Rules | None, output: Output) -> int:
    """Apply *rules*, or the repository's, where no tiers are in force; return the version."""
    async with Database(settings.sqlalchemy_url, pool_max=1) as database:
        stored = await stored_rules(database)
        if stored is None:
            # Into Redis they come with the worker, which loads each shard from PostgreSQL.
            return (await apply_rules(database, rules or read_rules(_TIERS_DEFAULT))).version
    if rules is not None:
        output.note(
            f"version {stored.version} of the tiers stays in force; to change them, run "
            "`allotment tiers apply FILE`"
        )
    return stored.version


async def _run_all(settings: Settings, output: Output, tiers_version: int) -> None:
    port = free_port(settings.metrics_host, settings.metrics_port, setting="METRICS")
    settings = settings.model_copy(update={"metrics_port": port})
    with listening_socket(settings.web_host, settings.web_port, setting="WEB") as listener:
        stop, api = asyncio.Event(), ApiServer(settings)
        worker = asyncio.create_task(run_worker(settings, stop=stop), name="worker")
        web = asyncio.create_task(api.serve_on(listener), name="api")
        try:
            await until_connectable(settings.metrics_host, port, unless=worker)
            await api.ready(unless=web)
            if not (worker.done() or web.done()):
                _announce(output, settings, listener, tiers_version)
            # run_worker stops on SIGTERM and Ctrl-C; then the api follows.
            await asyncio.wait([worker, web], return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop.set()
            api.stop()
            await asyncio.gather(worker, web)


def _announce(
    output: Output, settings: Settings, listener: socket.socket, tiers_version: int
) -> None:
    places: dict[str, Any] = {
        "database": redacted(settings.asyncpg_dsn),
        "redis": redacted(settings.quota_redis),
        "metrics": url_of(settings.metrics_host, settings.metrics_port, "/metrics"),
        "api": url_of(settings.web_host, listener.getsockname()[1]),
    }
    lines = [f"{name:9} {place}" for name, place in places.items()]
    closing = f"tiers     version {tiers_version}\nup; Ctrl-C stops everything"
    output.result({**places, "tiers_version": tiers_version}, *lines, closing)
