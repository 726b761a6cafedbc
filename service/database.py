"""PostgreSQL: one pool, used through SQLModel where rows are few and through asyncpg where they are many."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Self, cast

import asyncpg
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlmodel.ext.asyncio.session import AsyncSession

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = [
    "DATABASE_ERRORS",
    "Database",
    "NotDurableError",
    "driver_of",
    "durable_transaction",
    "statement",
]

# What PostgreSQL, its drivers and the way there fail with.
DATABASE_ERRORS = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    SQLAlchemyError,
    OSError,  # TimeoutError is one of them
)

_COMMAND_TIMEOUT_S = (
    60  # no statement of ours takes longer; a dead server must not hold a worker for ever
)
# A worker that is frozen, or whose network is gone, must not keep its shard's lock: a killed one lets
# go by itself. Milliseconds, and seconds for the keepalives. A COPY counts as no idle transaction: there
# the other workers see to it (`worker.standstill`).
_SERVER_SETTINGS = {
    "idle_in_transaction_session_timeout": "10000",
    "tcp_user_timeout": "10000",
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
}


class NotDurableError(Exception):
    """PostgreSQL committed, and warned that no standby may have it: a failover could undo it."""


@cache
def statement(package: str, name: str) -> str:
    """The SQL in `PACKAGE/sql/NAME.sql`, read once."""
    return (files(package) / "sql" / f"{name}.sql").read_text(encoding="utf-8")


class Database:
    """A pool of connections; *url* in SQLAlchemy's form, `postgresql+asyncpg://…`."""

    def __init__(self, url: str, *, pool_max: int) -> None:
        self._engine = create_async_engine(
            url,
            pool_size=pool_max,
            max_overflow=0,
            pool_pre_ping=True,  # a connection that died with its server is replaced, not handed out
            connect_args={
                "command_timeout": _COMMAND_TIMEOUT_S,
                "server_settings": _SERVER_SETTINGS,
            },
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close every connection."""
        await self._engine.dispose()

    @asynccontextmanager
    async def session(self) -> AsyncIterator[AsyncSession]:
        """A SQLModel session in a transaction, committed on leaving."""
        async with AsyncSession(self._engine, expire_on_commit=False) as session, session.begin():
            yield session

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[asyncpg.Connection[Any]]:
        """An asyncpg connection of the pool, for statements on arrays of thousands of rows.

        SQLAlchemy opens no transaction on it: use `connection.transaction()`. JSON goes in as text.
        """
        async with self._engine.connect() as pooled:
            raw = await pooled.get_raw_connection()
            driver = cast("asyncpg.Connection[Any]", raw.driver_connection)
            try:
                yield driver
            except BaseException:
                # Cut off in the middle of something: the pool must not lend it out again.
                if driver.is_closed() or driver.is_in_transaction():
                    await pooled.invalidate()
                raise


@asynccontextmanager
async def durable_transaction(connection: asyncpg.Connection[Any]) -> AsyncIterator[None]:
    """A transaction that is not taken for committed when PostgreSQL warned of it.

    Under synchronous replication a COMMIT whose wait for the standby is cancelled succeeds, with a
    warning: it is seen here, and gone after a failover. What the warning says depends on the language of
    the server, but nothing else is warned of at a COMMIT of ours.

    Raises:
        NotDurableError: there was a warning.
    """
    warnings: list[str] = []

    def hear(_: object, message: asyncpg.PostgresLogMessage) -> None:
        if (message.severity_en or message.severity) == "WARNING":
            warnings.append(f"{message.sqlstate} {message.message}")

    transaction = connection.transaction()
    await transaction.start()
    try:
        yield
    except BaseException:
        if not connection.is_closed():
            await transaction.rollback()
        raise
    # asyncpg tells its listeners before whoever waits for the COMMIT.
    connection.add_log_listener(hear)
    try:
        await transaction.commit()
    finally:
        if not connection.is_closed():
            connection.remove_log_listener(hear)
    if warnings:
        raise NotDurableError("; ".join(warnings))


async def driver_of(session: AsyncSession) -> asyncpg.Connection[Any]:
    """The connection of *session*, for statements of ours in its transaction."""
    await session.flush()  # what it was told so far is to be seen
    pooled = await session.connection()
    await pooled.execute(
        text("SELECT")
    )  # SQLAlchemy opens the transaction with its first statement
    return cast("asyncpg.Connection[Any]", (await pooled.get_raw_connection()).driver_connection)
