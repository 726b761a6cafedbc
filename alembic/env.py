"""What alembic runs for every command: one migration at a time, and none that others wait for.

The address comes from the code that called (`service.migrations`), or else from the settings.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING, Any

from alembic import context
from sqlalchemy import Connection, pool, text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from models import SQLModel
from service.settings import load_settings

if TYPE_CHECKING:
    from alembic.operations.ops import MigrationScript

# Whoever waits for a lock on a table makes everybody after it wait too: at most this long.
LOCK_TIMEOUT = "SET lock_timeout = '2s'"
# A migration that fills feature_usage says when a feature was used last; else a trigger takes now for it.
GIVES_LAST_USED = "SET allotment.gives_last_used = on"
# Until legacy rows are brought over, nobody else writes to feature_usage (alembic/sql/0001/freeze_name.sql).
MIGRATES = "SET allotment.migrates = on"
TRY_LOCK = text("SELECT pg_try_advisory_lock(1634495599, 1)")  # 'allo', migrations
TRY_AGAIN_S = 0.1
OTHER_MIGRATION_S_MAX = 600  # what may be running is a migration of a large table


def is_ours(name: str | None, kind: str, _: object) -> bool:
    """Whether *name* is compared with the models: the partitions of usage_logs are not in them."""
    return not (kind == "table" and name is not None and name.startswith("usage_logs_"))


def number(_: object, __: object, scripts: list[MigrationScript]) -> None:
    """Give a new migration the number after the last one, so that the files sort as they run."""
    last = context.script.get_current_head()
    scripts[0].rev_id = f"{int(last or 0) + 1:04}"


def configure(**how: Any) -> None:
    """Say what is compared, and that each migration is a transaction of its own."""
    context.configure(
        target_metadata=SQLModel.metadata,
        compare_type=True,
        compare_server_default=True,
        include_name=is_ours,
        process_revision_directives=number,
        transaction_per_migration=True,
        **how,
    )


def migrate(connection: Connection) -> None:
    """Run what alembic was asked for."""
    configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()


async def wait_for_other_migrations(connection: AsyncConnection) -> None:
    """Take the lock that a migration holds, until the connection closes.

    Tried again and again instead of waited for: a waiting statement holds a snapshot, and
    CREATE INDEX CONCURRENTLY of the migration that runs would wait for that.
    """
    give_up_at = monotonic() + OTHER_MIGRATION_S_MAX
    while not await connection.scalar(TRY_LOCK):
        await connection.commit()
        if monotonic() > give_up_at:
            raise TimeoutError(f"another migration runs for more than {OTHER_MIGRATION_S_MAX} s")
        await asyncio.sleep(TRY_AGAIN_S)
    await connection.commit()


async def online(url: str) -> None:
    """Migrate the database at *url*."""
    engine = create_async_engine(url, poolclass=pool.NullPool)
    async with engine.connect() as connection:
        await wait_for_other_migrations(connection)
        await connection.execute(text(LOCK_TIMEOUT))
        await connection.execute(text(GIVES_LAST_USED))
        await connection.execute(text(MIGRATES))
        await connection.commit()
        await connection.run_sync(migrate)


def offline() -> None:
    """Print the statements instead of running them (``alembic upgrade head --sql``)."""
    # Any other style of parameters would have each % doubled.
    configure(dialect_name="postgresql", dialect_opts={"paramstyle": "named"}, literal_binds=True)
    context.execute(LOCK_TIMEOUT)
    context.execute(GIVES_LAST_USED)
    context.execute(MIGRATES)
    with context.begin_transaction():
        context.run_migrations()


if context.is_offline_mode():
    offline()
else:
    asyncio.run(online(context.config.attributes.get("url") or load_settings().sqlalchemy_url))
