"""On whose behalf PostgreSQL is asked: a user sees own rows, an admin all (seed 003).

The role and the user are set for one transaction (`SET LOCAL`), so neither is left on a connection that goes
back to its pool. Whether somebody is an admin is a matter of the database role alone: no setting makes one.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from service.database import statement

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from uuid import UUID

    import asyncpg

    from service.database import Database

__all__ = ["ADMIN_ROLE", "USER_ROLE", "Identity", "acting_as"]

USER_ROLE = "allotment_user"
ADMIN_ROLE = "allotment_admin"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks: the user, or an admin (*user_id* is None, or the admin's own)."""

    user_id: UUID | None
    admin: bool = False

    def __post_init__(self) -> None:
        assert self.admin or self.user_id is not None, "somebody who is neither sees no row"

    @property
    def role(self) -> str:
        """The database role that the policies are for."""
        return ADMIN_ROLE if self.admin else USER_ROLE


@asynccontextmanager
async def acting_as(
    database: Database, identity: Identity, *, readonly: bool = False
) -> AsyncIterator[asyncpg.Connection[Any]]:
    """A transaction in which PostgreSQL shows and takes what *identity* may see and do; committed on leaving.

    Raises:
        asyncpg.InsufficientPrivilegeError: the login of *database* is no member of the role.
    """
    async with database.connection() as connection, connection.transaction(readonly=readonly):
        user_id = "" if identity.user_id is None else str(identity.user_id)
        await connection.execute(statement("service", "act_as"), identity.role, user_id)
        yield connection
