"""Compares a database with the schema of this checkout: what is there, what is missing, what is in the way (seed 004).

Nothing is changed, and no table is locked for longer than its definition is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import asyncpg
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Constraint, Index, pool, text
from sqlalchemy.ext.asyncio import create_async_engine

from models import SQLModel
from service.database import statement
from service.migrations import MigrationError, current, is_ours, migration_sql, newest
from service.urls import parse_database_url, sqlalchemy_url

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy import Connection

__all__ = [
    "CONFLICT",
    "LEGACY",
    "MISSING",
    "PRESENT",
    "Checked",
    "Finding",
    "check_schema",
    "require_room",
]

PRESENT = "present"
MISSING = "missing"
CONFLICT = "conflict"  # in the way, or of another form
LEGACY = "legacy"  # in the way, and `allotment migrate` brings it over
_KINDS = {
    "r": "table",
    "p": "partitioned table",
    "v": "view",
    "m": "materialized view",
    "f": "foreign table",
}
# What migrations make beside the tables of the models: views ("view") and functions ("function"), by name.
MADE = (
    ("view", "feature_events"),
    ("view", "usage_alerts_view"),
    ("function", "increment_feature_usage"),
    ("function", "get_current_usage_stats"),
    ("function", "update_feature_usage_timestamp"),
)
# What migrations ask before they change anything, and make for the session alone.
_ASKED = ("legacy_columns", "legacy_bases", "legacy_relations")
_MAKES_NAMES = "0006"  # the migration that makes the functions and views of seed 004
_ENCODING = "UTF8"


@dataclass(frozen=True, slots=True)
class Finding:
    """A table, column, index or constraint, and its state; *note* says what to do, or what differs."""

    kind: str
    name: str
    state: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Checked:
    """What was found in a database at *revision*, None for one that was never migrated."""

    revision: str | None
    needed: str | None
    findings: Sequence[Finding]

    @property
    def ready(self) -> bool:
        """Whether this version can work with it."""
        return self.revision == self.needed and not self.of(MISSING, CONFLICT, LEGACY)

    def of(self, *states: str) -> list[Finding]:
        """The findings of these states."""
        return [one for one in self.findings if one.state in states]


async def check_schema(url: str) -> Checked:
    """Compare the database at *url* with the models and the newest migration."""
    revision, needed = await current(url), await newest()
    # Of a database that is current, it is somebody's own.
    legacy = [] if revision == needed else await _legacy(url, revision)
    engine = create_async_engine(sqlalchemy_url(parse_database_url(url)), poolclass=pool.NullPool)
    try:
        async with engine.connect() as opened:
            tables = await opened.run_sync(_tables, revision is not None)
    finally:
        await engine.dispose()
    known = {one.name for one in legacy}
    if revision is not None and not await is_ours(revision):
        note = f"at {revision}, which is not of this version: another application's, or a newer one"
        legacy.insert(0, Finding("table", "alembic_version", CONFLICT, note))
    return Checked(revision, needed, [*legacy, *(one for one in tables if one.name not in known)])


async def require_room(url: str) -> None:
    """Do nothing if the tables can be made at *url*, or have been.

    Raises:
        MigrationError: something has a name of ours, and is not ours.
    """
    revision = await current(url)
    if revision == await newest():
        return
    if revision is None or not await is_ours(revision):
        findings = (await check_schema(url)).findings
    else:
        findings = await _legacy(url, revision)
    conflicts = [one for one in findings if one.state == CONFLICT]
    if conflicts:
        names = ", ".join(f"{one.kind} {one.name} ({one.note})" for one in conflicts)
        raise MigrationError(f"in the way of the tables of Allotment: {names}")


async def _legacy(url: str, revision: str | None) -> list[Finding]:
    """What a migration would say before it changes anything."""
    migrated = revision is not None
    made = revision is not None and revision >= _MAKES_NAMES
    connection = await asyncpg.connect(parse_database_url(url))
    try:
        for name in _ASKED:
            await connection.execute(migration_sql(f"0001/{name}"))
        encoding = await connection.fetchval("SHOW server_encoding")
        async with connection.transaction():
            found = await connection.fetch(statement("service", "legacy_found"), migrated)
            of_004 = await connection.fetch(statement("service", "legacy_names"), made)
    finally:
        await connection.close()
    findings = [_relation(row) for row in found]
    findings += [
        Finding(row["kind"], row["name"], LEGACY, "`allotment migrate` puts it aside")
        for row in of_004
    ]
    if encoding != _ENCODING:
        note = f"is {encoding}, needs {_ENCODING}: make a database of that encoding"
        findings.append(Finding("database", "encoding", CONFLICT, note))
    return findings


def _relation(row: Any) -> Finding:
    kind, name = _KINDS[row["kind"]], row["name"]
    if row["state"] == "conflict":
        return Finding(kind, name, CONFLICT, row["note"])
    if row["state"] == "derived":
        return Finding(kind, name, LEGACY, f"{row['note']}: `allotment migrate` puts it aside")
    rows = f"about {row['rows']:,} rows" if row["rows"] >= 0 else "its rows"
    return Finding(kind, name, LEGACY, f"`allotment migrate` brings {rows} over")


def _tables(connection: Connection, migrated: bool) -> list[Finding]:
    """The tables of the models and all that belongs to them."""
    if not migrated:
        return list(_not_made(connection))
    options = {"compare_type": True, "include_name": _is_compared}
    context = MigrationContext.configure(connection, opts=options)
    findings = {name: Finding("table", name, PRESENT) for name in sorted(SQLModel.metadata.tables)}
    for one in _differences(compare_metadata(context, SQLModel.metadata)):
        findings[f"{one.kind} {one.name}" if one.name not in findings else one.name] = one
    return [*findings.values(), *(_made(connection, kind, name) for kind, name in MADE)]


def _made(connection: Connection, kind: str, name: str) -> Finding:
    """A view or a function; of its name there may be several functions."""
    catalog, column = ("pg_proc", "proname") if kind == "function" else ("pg_class", "relname")
    found = connection.execute(
        text(f"SELECT count(*) FROM {catalog} WHERE {column} = :name"),  # noqa: S608  two literals
        {"name": name},
    )
    return Finding(kind, name, PRESENT if found.scalar() else MISSING)


def _not_made(connection: Connection) -> Iterator[Finding]:
    """Each table is missing, unless its name is taken."""
    taken = connection.exec_driver_sql(
        "SELECT relname FROM pg_class WHERE relnamespace = to_regnamespace(quote_ident(current_schema()))"
    )
    names = {row.relname for row in taken}
    for name in sorted(SQLModel.metadata.tables):
        if name in names:
            note = "not made by Allotment: rename it, or use another database"
            yield Finding("relation", name, CONFLICT, note)
        else:
            yield Finding("table", name, MISSING)


def _is_compared(name: str | None, kind: str, parents: Any) -> bool:
    """Whether *name* is compared: what a customer has beside our tables is none of our business."""
    table = name if kind == "table" else parents.get("table_name", name)
    return table is None or table in SQLModel.metadata.tables or kind == "schema"


def _differences(differences: Sequence[Any]) -> Iterator[Finding]:
    """What alembic found, but for what there is more of than needed."""
    for one in differences:
        if isinstance(one, list):  # of a column, several at once
            yield from (_modified(each) for each in one)
            continue
        what, item = one[0], one[-1]
        if what == "add_table":
            yield Finding("table", item.name, MISSING)
        elif what == "add_column":
            yield Finding("column", f"{one[2]}.{item.name}", MISSING)
        elif what.startswith("add_") and isinstance(item, Index | Constraint):
            table = item.table.name if item.table is not None else ""
            yield Finding(what.removeprefix("add_"), f"{table}.{item.name}", MISSING)


def _modified(one: Any) -> Finding:
    what, _, table, column, _, found, wanted = one
    note = f"{what.removeprefix('modify_')} is {found}, needs {wanted}"
    return Finding("column", f"{table}.{column}", CONFLICT, note)
