"""Column forms that several tables share."""

from typing import Any

from sqlalchemy import BigInteger, Column, DateTime, Text, Uuid, text

__all__ = ["bigint", "instant", "label", "user_id"]

NOW = text("now()")


def instant(*, nullable: bool = False, default_now: bool = False) -> Column[Any]:
    """An instant with its time zone; the server keeps UTC."""
    return Column(
        DateTime(timezone=True), nullable=nullable, server_default=NOW if default_now else None
    )


def bigint(*, default: int | None = None, nullable: bool = False) -> Column[Any]:
    """64 bits: amounts and micro-credits reach 2^53, and sums of them pass 32 bits soon."""
    server_default = None if default is None else text(str(default))
    return Column(BigInteger, nullable=nullable, server_default=server_default)


def label(
    *, nullable: bool = True, default: str | None = None, primary_key: bool = False
) -> Column[Any]:
    """Text whose length is checked at the edge."""
    server_default = None if default is None else text(f"'{default}'")
    return Column(Text, nullable=nullable, server_default=server_default, primary_key=primary_key)


def user_id(*, primary_key: bool = True) -> Column[Any]:
    """The user that a row belongs to.

    Rows that the worker writes by the thousand do not reference `users` by a constraint: the
    apply transaction makes sure of the user itself, and a trigger a row would cost half as much
    as the row.
    """
    return Column(Uuid, primary_key=primary_key, nullable=False)
