"""How far the usage log was applied, and what of it could not be."""

import datetime as dt
import uuid

from sqlalchemy import (
    BigInteger,
    Column,
    Identity,
    Integer,
    LargeBinary,
    SmallInteger,
    UniqueConstraint,
    text,
)
from sqlmodel import Field, SQLModel

from models.columns import bigint, instant, label, user_id


class UsageShard(SQLModel, table=True):
    """A shard's epoch and the last entry applied of its log.

    The lock of its row is the fence between workers.
    """

    __tablename__ = "usage_shards"

    shard: int = Field(sa_column=Column(SmallInteger, primary_key=True, autoincrement=False))
    epoch: int = Field(default=0, sa_column=bigint(default=0))
    last_entry_id: str = Field(default="0-0", sa_column=label(nullable=False, default="0-0"))
    lines_applied: int = Field(default=0, sa_column=bigint(default=0))
    updated_at: dt.datetime = Field(sa_column=instant(default_now=True))


class QuarantinedRecord(SQLModel, table=True):
    """A record that could not be applied, as it came, with the reason; it can be retried."""

    __tablename__ = "quarantined_records"
    __table_args__ = (
        UniqueConstraint("source", "place", name="uq_quarantined_records_source_place"),
    )

    id: int = Field(sa_column=Column(BigInteger, Identity(always=True), primary_key=True))
    source: str = Field(sa_column=label(nullable=False))
    place: str = Field(sa_column=label(nullable=False))
    raw: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    reason: str = Field(sa_column=label(nullable=False))
    created_at: dt.datetime = Field(default=None, sa_column=instant(default_now=True))
    retries: int = Field(
        default=0, sa_column=Column(Integer, nullable=False, server_default=text("0"))
    )


class StaleUser(SQLModel, table=True):
    """A user whose standing in Redis must be dropped, because it changed here.

    An outbox of one purpose, written in the transaction of the change: a crash before Redis hears
    of it loses nothing.
    """

    __tablename__ = "stale_users"

    user_id: uuid.UUID = Field(sa_column=user_id())
    change: int = Field(
        default=None, sa_column=Column(BigInteger, Identity(always=True), primary_key=True)
    )
