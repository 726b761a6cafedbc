"""Credits: what was granted, and every burn, so that each can be traced to the grant that paid."""

import datetime as dt
import uuid

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Identity,
    SmallInteger,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlmodel import Field, SQLModel

from models.columns import bigint, instant, label, user_id


class CreditGrant(SQLModel, table=True):
    """An amount of credits with priority and expiry.

    Of it only `left_micro` and `voided_at` ever change.
    """

    __tablename__ = "credit_grants"
    __table_args__ = (
        UniqueConstraint("user_id", "name", name="uq_credit_grants_user_name"),
        CheckConstraint(
            "amount_micro >= 0 AND left_micro BETWEEN 0 AND amount_micro",
            name="credit_grants_bounded",
        ),
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


class CreditEntry(SQLModel, table=True):
    """One movement of credits, append-only: a burn, and the grant that paid it (seed 003).

    No grant means overage; `repaid` entries say which grant paid overage later.
    """

    __tablename__ = "credit_entries"
    __table_args__ = (
        CheckConstraint("kind IN ('burn', 'repaid')", name="credit_entries_kind_known"),
    )

    user_id: uuid.UUID = Field(sa_column=user_id())
    id: int = Field(sa_column=Column(BigInteger, Identity(always=True), primary_key=True))
    grant_id: uuid.UUID | None = Field(default=None, sa_column=Column(Uuid))
    usage_id: uuid.UUID | None = Field(default=None, sa_column=Column(Uuid))
    kind: str = Field(sa_column=label(nullable=False))
    amount_micro: int = Field(sa_column=bigint())
    created_at: dt.datetime = Field(sa_column=instant())
