"""Credits: what was granted, held and given back, and every movement, so that each can be traced to who paid."""

import datetime as dt
import uuid
from typing import Any

from sqlalchemy import (
    CheckConstraint,
    Column,
    Index,
    SmallInteger,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlmodel import Field, SQLModel

from models.columns import bigint, instant, label, user_id


class CreditGrant(SQLModel, table=True):
    """An amount of credits with priority and expiry; recurring ones are set back to it.

    Of it only `left_micro`, `renewed_at` and `voided_at` ever change, and of a tier's allowance the
    amount and how often it recurs: `changed_at` tells of which change of the tier's they are, NULL of none.
    `left_micro` passes the amount where a reset has a minimum to keep.
    """

    __tablename__ = "credit_grants"
    __table_args__ = (
        UniqueConstraint("user_id", "name", name="uq_credit_grants_user_name"),
        CheckConstraint(
            "amount_micro >= 0 AND left_micro >= 0 AND overused_micro >= 0",
            name="credit_grants_bounded",
        ),
        CheckConstraint(
            "min_rollover_micro >= 0 AND min_rollover_micro <= max_rollover_micro",
            name="credit_grants_rollover_bounded",
        ),
        CheckConstraint("every IN ('day', 'week', 'month')", name="credit_grants_every_known"),
        CheckConstraint(
            "kind IN ('promo', 'granted', 'purchased')", name="credit_grants_kind_known"
        ),
        CheckConstraint("expires_at > effective_at", name="credit_grants_expire_after_effect"),
        {"postgresql_with": {"fillfactor": 70}},
    )

    user_id: uuid.UUID = Field(sa_column=user_id())
    id: uuid.UUID = Field(sa_column=Column(Uuid, primary_key=True))
    name: str | None = Field(default=None, sa_column=label())
    amount_micro: int = Field(sa_column=bigint())
    left_micro: int = Field(sa_column=bigint())
    priority: int = Field(
        default=1, sa_column=Column(SmallInteger, nullable=False, server_default=text("1"))
    )
    kind: str = Field(default="granted", sa_column=label(nullable=False, default="granted"))
    effective_at: dt.datetime = Field(sa_column=instant())
    expires_at: dt.datetime | None = Field(default=None, sa_column=instant(nullable=True))
    voided_at: dt.datetime | None = Field(default=None, sa_column=instant(nullable=True))
    created_at: dt.datetime = Field(default=None, sa_column=instant(default_now=True))
    every: str | None = Field(default=None, sa_column=label())
    renewed_at: dt.datetime | None = Field(default=None, sa_column=instant(nullable=True))
    changed_at: dt.datetime | None = Field(default=None, sa_column=instant(nullable=True))
    overused_micro: int = Field(default=0, sa_column=bigint(default=0))
    min_rollover_micro: int = Field(default=0, sa_column=bigint(default=0))
    max_rollover_micro: int = Field(default=0, sa_column=bigint(default=0))


class CreditEntry(SQLModel, table=True):
    """One movement of credits, append-only: a burn, and the grant that paid it (seed 003).

    A burn has the id of its usage, so that a refund finds who paid; every other movement has one of
    its own. A burn without a grant is overage; a refund without one took overage back.
    """

    __tablename__ = "credit_entries"
    __table_args__ = (
        CheckConstraint(
            "kind IN ('granted', 'burn', 'repaid', 'refund', 'renewed', 'lapsed', 'voided', 'forgiven')",
            name="credit_entries_kind_known",
        ),
    )

    user_id: uuid.UUID = Field(sa_column=user_id())
    id: uuid.UUID = Field(sa_column=Column(Uuid, primary_key=True))
    place: int = Field(
        default=0,
        sa_column=Column(
            SmallInteger, primary_key=True, autoincrement=False, server_default=text("0")
        ),
    )
    grant_id: uuid.UUID | None = Field(default=None, sa_column=Column(Uuid))
    kind: str = Field(sa_column=label(nullable=False))
    amount_micro: int = Field(sa_column=bigint())
    created_at: dt.datetime = Field(sa_column=instant())


class Hold(SQLModel, table=True):
    """Units and credits that `reserve` set aside, from the reserve on for ever.

    While it is open its units are in `usage_counters` and `usage_windows`, and `payments` says which
    grant holds its credits; it is in `usage_logs` and `feature_usage` once it is committed.
    """

    __tablename__ = "holds"
    __table_args__ = (
        CheckConstraint(
            "status IN ('open', 'committed', 'released', 'expired')", name="holds_status_known"
        ),
        CheckConstraint("(status = 'open') = (ended_at IS NULL)", name="holds_end_when_not_open"),
        Index("idx_holds_open", "expires_at", postgresql_where=text("status = 'open'")),
        Index("idx_holds_open_user", "user_id", postgresql_where=text("status = 'open'")),
        {"postgresql_with": {"fillfactor": 70}},
    )

    user_id: uuid.UUID = Field(sa_column=user_id())
    key: str = Field(sa_column=label(nullable=False, primary_key=True))
    id: uuid.UUID = Field(sa_column=Column(Uuid, nullable=False))
    feature: str = Field(sa_column=label(nullable=False))
    amount: int = Field(sa_column=bigint())
    cost_micro: int = Field(sa_column=bigint())
    price: str = Field(sa_column=label(nullable=False))
    record: list[Any] = Field(sa_column=Column(JSONB, nullable=False))
    payments: list[Any] = Field(sa_column=Column(JSONB, nullable=False))
    windows: list[Any] = Field(sa_column=Column(JSONB, nullable=False))
    reserved_at: dt.datetime = Field(sa_column=instant())
    expires_at: dt.datetime = Field(sa_column=instant())
    status: str = Field(default="open", sa_column=label(nullable=False, default="open"))
    committed_amount: int | None = Field(default=None, sa_column=bigint(nullable=True))
    committed_micro: int | None = Field(default=None, sa_column=bigint(nullable=True))
    ended_at: dt.datetime | None = Field(default=None, sa_column=instant(nullable=True))


class UsageRefund(SQLModel, table=True):
    """Units of a usage record that were taken back, and the credits due and given back for them."""

    __tablename__ = "usage_refunds"
    __table_args__ = (
        UniqueConstraint("user_id", "refund_id", name="uq_usage_refunds_user_refund"),
        CheckConstraint(
            "amount >= 0 AND applied_micro BETWEEN 0 AND credits_micro",
            name="usage_refunds_bounded",
        ),
        Index("idx_usage_refunds_usage", "user_id", "usage_id"),
    )

    user_id: uuid.UUID = Field(sa_column=user_id())
    id: uuid.UUID = Field(sa_column=Column(Uuid, primary_key=True))
    refund_id: str = Field(sa_column=label(nullable=False))
    usage_id: uuid.UUID = Field(sa_column=Column(Uuid, nullable=False))
    key: str = Field(sa_column=label(nullable=False))
    amount: int = Field(sa_column=bigint())
    credits_micro: int = Field(sa_column=bigint())
    applied_micro: int = Field(sa_column=bigint())
    at: dt.datetime = Field(sa_column=instant())
