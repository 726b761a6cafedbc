"""Brings a database to the schema of this checkout, as alembic's command would, but from code.

It works from any directory, and inside a running event loop.
"""

from __future__ import annotations

import asyncio
import threading
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy.exc import DBAPIError

from service.database import statement
from service.urls import parse_database_url, sqlalchemy_url

if TYPE_CHECKING:
    from collections.abc import Callable

    Tell = Callable[[str, int, float], object]  # what is done, rows so far, share of all

__all__ = [
    "MigrationError",
    "OutdatedDatabaseError",
    "TableInUseError",
    "current",
    "downgrade",
    "is_ours",
    "migration_sql",
    "newest",
    "printed",
    "require_current",
    "upgrade",
]

_PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"  # [tool.alembic] says where the rest is
_TRIES_MAX = 5
_PAUSE_S = 1.0  # for whoever holds the table, and for those that waited behind us
_LOCK_NOT_AVAILABLE = "55P03"
_REFUSED = "AL001"  # raised by SQL of ours, with what a person can do

_alembic_is_free = threading.Lock()  # alembic keeps what it is doing in globals of the process


class MigrationError(Exception):
    """The schema is not, and did not come to be, the one that was asked for."""


class OutdatedDatabaseError(MigrationError):
    """The database has another schema than this version of the service works with."""


class TableInUseError(MigrationError):
    """Somebody else held a table that a migration changes, each time that it was tried."""


async def upgrade(
    url: str, revision: str = "head", *, tries_max: int = _TRIES_MAX, tell: Tell | None = None
) -> None:
    """Bring the database at *url* up to *revision*; waits for a migration that already runs.

    Each migration is a transaction of its own, but for one that brings over rows of a legacy table in many. One
    that does not get a lock within two seconds gives up, so that nobody has to wait behind it, and
    is tried again. *tell* is told, in another thread, how far that with many rows is. Cancelling does
    not stop the migration that runs.

    Raises:
        TableInUseError, MigrationError
    """
    await _migrate(command.upgrade, url=url, revision=revision, tries_max=tries_max, tell=tell)


async def printed(*, since: str | None) -> str:
    """The SQL that brings a database from *since* (None: an empty one) to the schema of this checkout."""

    def run(config: Config, revisions: str) -> None:
        command.upgrade(config, revisions, sql=True)

    buffer = StringIO()
    config = Config(toml_file=_PYPROJECT, output_buffer=buffer)
    await asyncio.to_thread(_run_alone, run, config, f"{since or 'base'}:head")
    return buffer.getvalue()


def migration_sql(name: str) -> str:
    """The SQL of a migration, in alembic/sql/*name*.sql."""
    return (_PYPROJECT.parent / "alembic" / "sql" / f"{name}.sql").read_text(encoding="utf-8")


async def downgrade(url: str, revision: str, *, tries_max: int = _TRIES_MAX) -> None:
    """Take the database at *url* back to *revision* (``base``: drop everything), as `upgrade`."""
    await _migrate(command.downgrade, url=url, revision=revision, tries_max=tries_max)


async def current(url: str) -> str | None:
    """Return the revision of the database at *url*, None for one that was never migrated."""
    connection = await asyncpg.connect(parse_database_url(url))
    try:
        revision: str | None = await connection.fetchval(statement("service", "current_revision"))
    except asyncpg.UndefinedTableError:
        return None
    finally:
        await connection.close()
    return revision


async def newest() -> str | None:
    """Return the revision that this checkout was made for."""
    return (await _scripts()).get_current_head()


async def is_ours(revision: str) -> bool:
    """Return whether *revision* is this checkout's, or one before it."""
    return revision in {script.revision for script in (await _scripts()).walk_revisions()}


async def require_current(database_url: str) -> None:
    """Do nothing if the schema is the one of this checkout; raises OutdatedDatabaseError."""
    found, needed = await current(database_url), await newest()
    if found == needed:
        return
    if found is not None and not await is_ours(found):
        raise OutdatedDatabaseError(
            f"database is at {found}, which is newer than this version, made for {needed}: "
            "start the newer version"
        )
    raise OutdatedDatabaseError(
        f"database is at {found or 'nothing'}, this version needs {needed}: run `allotment migrate`"
    )


async def _scripts() -> ScriptDirectory:
    return await asyncio.to_thread(ScriptDirectory.from_config, Config(toml_file=_PYPROJECT))


async def _migrate(
    run: Callable[[Config, str], None],
    *,
    url: str,
    revision: str,
    tries_max: int,
    tell: Tell | None = None,
) -> None:
    config = _config(url)
    config.attributes["tell"] = tell
    for tries_left in reversed(range(tries_max)):
        try:
            await asyncio.to_thread(_run_alone, run, config, revision)
        except DBAPIError as error:
            state = getattr(error.orig, "sqlstate", None)
            if state == _REFUSED:
                raise MigrationError(_message(error)) from error
            if state != _LOCK_NOT_AVAILABLE:
                raise
            if not tries_left:
                raise TableInUseError(
                    f"a table was in use each of the {tries_max} times that the migration was "
                    "tried: end long transactions (pg_stat_activity shows them) and try again"
                ) from error
        else:
            return
        await asyncio.sleep(_PAUSE_S)


def _message(error: DBAPIError) -> str:
    """What PostgreSQL said, without the statement that it said it to."""
    said = error.orig.__cause__ if error.orig is not None else None
    return str(said or error.orig).splitlines()[0]


def _run_alone(run: Callable[[Config, str], None], config: Config, revision: str) -> None:
    with _alembic_is_free:
        run(config, revision)


def _config(url: str) -> Config:
    address = sqlalchemy_url(parse_database_url(url))
    return Config(toml_file=_PYPROJECT, attributes={"url": address})
