"""Who uses the platform."""

import datetime as dt
import uuid

from sqlalchemy import CheckConstraint, Column, Index, SmallInteger, Uuid, text
from sqlmodel import Field, SQLModel

from models.columns import bigint, instant, label


class User(SQLModel, table=True):
    """A user, made on first use unless AUTO_PROVISION is off (seeds 000-004 all refer to it).

    `external_id` is what the application calls the user; `id` is derived from it, or is it.
    `overage_micro` is what was burnt past the last grant and no grant has paid yet; what had begun by
    `overage_at`, when it was last set, does not repay it.
    """

    __tablename__ = "users"
    __table_args__ = (
        CheckConstraint("role IN ('user', 'admin')", name="users_role_known"),
        CheckConstraint("cycle_months BETWEEN 1 AND 120", name="users_cycle_months_bounded"),
        CheckConstraint("overage_micro >= 0", name="users_overage_not_negative"),
        Index("idx_users_external_id", "external_id"),
        Index("idx_users_tier", "tier"),
    )

    id: uuid.UUID = Field(sa_column=Column(Uuid, primary_key=True))
    external_id: str | None = Field(default=None, sa_column=label())
    username: str | None = Field(default=None, sa_column=label())
    role: str = Field(default="user", sa_column=label(nullable=False, default="user"))
    tier: str = Field(sa_column=label(nullable=False))
    timezone: str = Field(default="UTC", sa_column=label(nullable=False, default="UTC"))
    anchor: dt.datetime = Field(default=None, sa_column=instant(default_now=True))
    cycle_months: int = Field(
        default=1, sa_column=Column(SmallInteger, nullable=False, server_default=text("1"))
    )
    status: str = Field(default="active", sa_column=label(nullable=False, default="active"))
    overage_micro: int = Field(default=0, sa_column=bigint(default=0))
    created_at: dt.datetime = Field(default=None, sa_column=instant(default_now=True))
    overage_at: dt.datetime | None = Field(default=None, sa_column=instant(nullable=True))
