"""What users did: the append-only log of usage, and what is counted from it."""

import datetime as dt
import uuid
from decimal import Decimal
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Identity,
    Index,
    Integer,
    Numeric,
    SmallInteger,
    String,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlmodel import Field, SQLModel

from models.columns import bigint, instant, label, user_id


class UsageLog(SQLModel, table=True):
    """One metered act: all columns and indexes of seed 003, the event fields of seed 001.

    Partitioned by month of `created_at`. `arrived_at` is when a record was admitted that says when it
    occurred; a *late* one came too late to be counted then. The key carries the user, and begins with the id, which
    grows with time: new rows go to the end of the index.
    """

    __tablename__ = "usage_logs"
    # Those of seed 003, under its names, with what each adds to COPY of a row: 5 µs without any of them, 14 with all.
    # A test has EXPLAIN show each one at work (tests/integration/test_analytics.py).
    __table_args__ = (
        # 3.8 µs. A user's history, what counts in windows, and all that is counted anew of a user.
        Index("idx_usage_logs_user_created", "user_id", text("created_at DESC")),
        # 1.4 µs. The latest uses of one feature: the adoption of a new one, the events of seed 001.
        Index("idx_usage_logs_action", "action", text("created_at DESC")),
        # 1.0 µs. Only for questions by hand about a rare format: the service reads rollups.
        Index("idx_usage_logs_format_quality", "format", "quality"),
        # 1.6 µs. The rows of a run, for the rollups; the latest of everybody.
        Index("idx_usage_logs_created", text("created_at DESC")),
        # 1.5 µs. Only for questions by hand about the dearest records.
        Index("idx_usage_logs_credits", text("credits_consumed DESC")),
        # 0.3 µs. A refund by key alone; a key that is the id is found by that.
        Index("idx_usage_logs_key", "key", postgresql_where=text("key IS NOT NULL")),
        {"postgresql_partition_by": "RANGE (created_at)"},
    )

    id: uuid.UUID = Field(
        sa_column=Column(Uuid, primary_key=True, server_default=text("gen_random_uuid()"))
    )
    user_id: uuid.UUID = Field(sa_column=user_id())
    action: str = Field(sa_column=label(nullable=False))
    amount: int = Field(default=1, sa_column=bigint(default=1))
    credits_consumed: Decimal = Field(
        sa_column=Column(Numeric(16, 6), nullable=False, server_default=text("1.0"))
    )
    usage_metadata: dict[str, Any] | None = Field(default=None, sa_column=Column("metadata", JSONB))
    created_at: dt.datetime = Field(
        sa_column=Column(
            instant().type, primary_key=True, nullable=False, server_default=text("now()")
        )
    )
    format: str | None = Field(default=None, sa_column=label())
    quality: str | None = Field(default=None, sa_column=label())
    key: str | None = Field(default=None, sa_column=label())
    line: int = Field(
        default=0, sa_column=Column(SmallInteger, nullable=False, server_default=text("0"))
    )
    event_id: str | None = Field(default=None, sa_column=label())
    event_type: str | None = Field(default=None, sa_column=label())
    product_version: str | None = Field(default=None, sa_column=label())
    session_id: str | None = Field(default=None, sa_column=label())
    late: bool = Field(
        default=False, sa_column=Column(Boolean, nullable=False, server_default=text("false"))
    )
    arrived_at: dt.datetime | None = Field(default=None, sa_column=instant(nullable=True))


class UsageKey(SQLModel, table=True):
    """A key that the caller chose, by its digest, so that a repeat is refused for ever.

    Keys that our client makes carry their time, and are found in `usage_logs` by it.
    """

    __tablename__ = "usage_keys"

    user_id: uuid.UUID = Field(sa_column=user_id())
    mark: uuid.UUID = Field(sa_column=Column(Uuid, primary_key=True))
    usage_id: uuid.UUID = Field(sa_column=Column(Uuid, nullable=False))
    created_at: dt.datetime = Field(sa_column=instant())


class FeatureUsage(SQLModel, table=True):
    """How often a user used a feature, ever (seed 000; the sync columns are of seed 004).

    `usage_count` counts units and `id` numbers attempts to insert: both pass the 32 bits of the
    seed at the rates that this system is made for, so both have 64.
    """

    __tablename__ = "feature_usage"
    __table_args__ = (
        UniqueConstraint("user_id", "feature_name", name="uq_feature_usage_user_feature"),
        Index("idx_feature_usage_user_id", "user_id"),
        Index("idx_feature_usage_name", "feature_name"),
        # Every use updates the row: room in its page keeps that update out of the indexes.
        {"postgresql_with": {"fillfactor": 70}},
    )

    id: int = Field(
        default=None, sa_column=Column(BigInteger, Identity(always=False), primary_key=True)
    )
    user_id: uuid.UUID | None = Field(
        default=None, sa_column=Column(Uuid, ForeignKey("users.id", ondelete="CASCADE"))
    )
    feature_name: str | None = Field(default=None, sa_column=Column(String(100)))
    usage_metadata: dict[str, Any] | None = Field(default=None, sa_column=Column("metadata", JSONB))
    usage_count: int | None = Field(default=1, sa_column=bigint(default=1, nullable=True))
    last_used: dt.datetime = Field(sa_column=instant(default_now=True))
    sync_status: str = Field(default="synced", sa_column=label(nullable=False, default="synced"))
    last_synced_at: dt.datetime | None = Field(default=None, sa_column=instant(nullable=True))
    discrepancy_count: int = Field(
        default=0, sa_column=Column(Integer, nullable=False, server_default=text("0"))
    )


class UsageCounter(SQLModel, table=True):
    """Units of a feature in each running period of a user.

    One wide row: narrow ones cost three times as much.
    A period is known by its start, in the user's calendar. The row says nothing of past periods.
    """

    __tablename__ = "usage_counters"
    __table_args__ = ({"postgresql_with": {"fillfactor": 70}},)

    user_id: uuid.UUID = Field(sa_column=user_id())
    feature: str = Field(sa_column=label(nullable=False, primary_key=True))
    hour_start: dt.datetime = Field(sa_column=instant())
    hour_used: int = Field(sa_column=bigint())
    day_start: dt.datetime = Field(sa_column=instant())
    day_used: int = Field(sa_column=bigint())
    week_start: dt.datetime = Field(sa_column=instant())
    week_used: int = Field(sa_column=bigint())
    month_start: dt.datetime = Field(sa_column=instant())
    month_used: int = Field(sa_column=bigint())
    year_start: dt.datetime = Field(sa_column=instant())
    year_used: int = Field(sa_column=bigint())
    cycle_start: dt.datetime = Field(sa_column=instant())
    cycle_used: int = Field(sa_column=bigint())
    lifetime_used: int = Field(sa_column=bigint())


class UsageWindow(SQLModel, table=True):
    """Units of a feature in the window of so many seconds that a user opened last, by using it."""

    __tablename__ = "usage_windows"
    __table_args__ = ({"postgresql_with": {"fillfactor": 70}},)

    user_id: uuid.UUID = Field(sa_column=user_id())
    feature: str = Field(sa_column=label(nullable=False, primary_key=True))
    seconds: int = Field(sa_column=Column(Integer, primary_key=True, autoincrement=False))
    ends_at: dt.datetime = Field(sa_column=instant())
    used: int = Field(sa_column=bigint())
