"""Compares a database with the schema of this checkout: what is there, what is missing, what is in the way (seed 004).

Nothing is changed, and no table is locked for longer than its definition is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import pool
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
    "objects",
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
# Of these, that they are there is told too; of the rest, only what is missing.
_TOLD = ("table", "view", "function")
# Names of indexes that 0001 frees for its own where `feature_usage` is legacy.
_FREED = (
    "feature_usage_pkey",
    "uq_feature_usage_user_feature",
    "idx_feature_usage_user_id",
    "idx_feature_usage_name",
)
# What migrations ask before they change anything, and make for the session alone.
_ASKED = ("legacy_columns", "legacy_bases", "legacy_relations")
_RELATIONS = ("table", "view", "index")  # which share their names
_MAKES_NAMES = "0006"  # the migration that makes the functions and views of seed 004
_ENCODING = "UTF8"


@dataclass(frozen=True, slots=True)
class Finding:
    """A table, column, index, policy and so on, and its state; *note* says what to do, or what differs."""

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
    found = await _objects(url)
    if revision is None:
        made = list(_not_made(found, {one.name for one in legacy}))
    else:
        changed = MISSING if revision != needed and await is_ours(revision) else CONFLICT
        made = [*_made(found), *await _changed(url, changed)]
    if revision is not None and not await is_ours(revision):
        note = f"at {revision}, which is not of this version: another application's, or a newer one"
        legacy.insert(0, Finding("table", "alembic_version", CONFLICT, note))
    return Checked(revision, needed, [*legacy, *made])


def objects() -> list[tuple[str, str]]:
    """What a migrated schema has, each with its kind, as service/sql/schema_objects.sql lists it."""
    lines = Path(__file__).with_name("schema_objects.txt").read_text(encoding="utf-8").splitlines()
    return [(kind, name) for kind, name in (line.split("\t") for line in lines)]


async def _objects(url: str) -> set[tuple[str, str]]:
    """What the database has."""
    connection = await asyncpg.connect(parse_database_url(url))
    try:
        rows = await connection.fetch(statement("service", "schema_objects"))
    finally:
        await connection.close()
    return {(row["kind"], row["name"]) for row in rows}


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


def _made(found: set[tuple[str, str]]) -> Iterator[Finding]:
    """Whether each object is there; of a table that is missing, that alone is told."""
    missing = {one for one in objects() if one not in found}
    gone = {name for kind, name in missing if kind in ("table", "view")}
    for kind, name in objects():
        if (kind, name) not in missing:
            if kind in _TOLD:
                yield Finding(kind, name, PRESENT)
        elif kind in _TOLD or name.split(".")[0] not in gone:
            yield Finding(kind, name, MISSING)


def _not_made(found: set[tuple[str, str]], aside: set[str]) -> Iterator[Finding]:
    """Each table is missing, unless its name is taken; *aside* is what a migration takes out of the way."""
    freed = {_plain(name) for name in aside} | ({*_FREED} if aside else set())
    relations = {_plain(name) for kind, name in found if kind in _RELATIONS}
    functions = {_plain(name) for kind, name in found if kind == "function"}
    for kind, name in objects():
        plain = _plain(name)
        if plain in freed or kind not in (*_RELATIONS, "function"):
            continue
        if plain in (functions if kind == "function" else relations):
            note = "not made by Allotment: rename it, or use another database"
            yield Finding(kind if kind == "function" else "relation", plain, CONFLICT, note)
        elif kind == "table":
            yield Finding("table", name, MISSING)


def _plain(name: str) -> str:
    """Without the table before it, and the types of a function after it: statements of ours name it so."""
    return name.split("(", maxsplit=1)[0].rsplit(".", maxsplit=1)[-1]


async def _changed(url: str, state: str) -> list[Finding]:
    """Columns that are not as in the models, or that nobody fills."""

    def compare(connection: Connection) -> Sequence[Any]:
        options = {"compare_type": True, "include_name": _is_compared}
        context = MigrationContext.configure(connection, opts=options)
        differences: Sequence[Any] = compare_metadata(context, SQLModel.metadata)
        return differences

    engine = create_async_engine(sqlalchemy_url(parse_database_url(url)), poolclass=pool.NullPool)
    try:
        async with engine.connect() as opened:
            return list(_differences(await opened.run_sync(compare), state))
    finally:
        await engine.dispose()


def _is_compared(name: str | None, kind: str, parents: Any) -> bool:
    """Whether *name* is compared: what a customer has beside our tables is none of our business."""
    table = name if kind == "table" else parents.get("table_name", name)
    return table is None or table in SQLModel.metadata.tables or kind == "schema"


def _differences(differences: Sequence[Any], state: str) -> Iterator[Finding]:
    """What alembic found of columns."""
    for one in differences:
        if isinstance(one, list):  # of a column, several at once
            for what, _, table, column, _, found, wanted in one:
                note = f"{what.removeprefix('modify_')} is {found}, needs {wanted}"
                yield Finding("column", f"{table}.{column}", state, note)
        elif one[0] == "add_column":
            yield Finding("column", f"{one[2]}.{one[3].name}", MISSING)
        elif one[0] == "remove_column":
            table, column = one[2:]
            if not column.nullable and column.server_default is None and not column.identity:
                note = "is not of this version, and can not be null: give it a default"
                yield Finding("column", f"{table}.{column.name}", CONFLICT, note)
