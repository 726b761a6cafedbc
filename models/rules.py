"""Tiers, limits and prices, version by version as they were applied: history can be explained."""

import datetime as dt
from decimal import Decimal
from typing import Any

from sqlalchemy import Boolean, CheckConstraint, Column, Integer, Numeric, SmallInteger, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlmodel import Field, SQLModel

from models.columns import bigint, instant, label


class TierVersion(SQLModel, table=True):
    """A tier under one version of the rules; the highest version is in force (seed 002).

    `position` is its place in the file, from 0: tiers stand there in rising order.
    """

    __tablename__ = "tiers"

    version: int = Field(sa_column=Column(Integer, primary_key=True))
    name: str = Field(sa_column=label(nullable=False, primary_key=True))
    is_default: bool = Field(
        default=False, sa_column=Column(Boolean, nullable=False, server_default=text("false"))
    )
    overdraft: bool = Field(
        default=False, sa_column=Column(Boolean, nullable=False, server_default=text("false"))
    )
    allowance_micro: int | None = Field(default=None, sa_column=bigint(nullable=True))
    allowance_every: str | None = Field(default=None, sa_column=label())
    thresholds: list[int] = Field(sa_column=Column(ARRAY(SmallInteger), nullable=False))
    applied_at: dt.datetime = Field(default=None, sa_column=instant(default_now=True))
    position: int = Field(
        default=0, sa_column=Column(SmallInteger, nullable=False, server_default=text("0"))
    )


class TierLimit(SQLModel, table=True):
    """A limit of a tier on a feature.

    `*` stands for any feature that is not named, and no maximum for unlimited.
    """

    __tablename__ = "tier_limits"
    __table_args__ = (CheckConstraint("mode IN ('hard', 'soft')", name="tier_limits_mode_known"),)

    version: int = Field(sa_column=Column(Integer, primary_key=True))
    tier: str = Field(sa_column=label(nullable=False, primary_key=True))
    feature: str = Field(sa_column=label(nullable=False, primary_key=True))
    position: int = Field(sa_column=Column(SmallInteger, primary_key=True))
    per: str = Field(sa_column=label(nullable=False))
    mode: str = Field(sa_column=label(nullable=False))
    max: int | None = Field(default=None, sa_column=bigint(nullable=True))


class CreditPrice(SQLModel, table=True):
    """Credits that a unit of a feature costs, for everyone (tier `*`) or one tier (seed 003)."""

    __tablename__ = "credit_prices"

    version: int = Field(sa_column=Column(Integer, primary_key=True))
    tier: str = Field(sa_column=label(nullable=False, primary_key=True))
    feature: str = Field(sa_column=label(nullable=False, primary_key=True))
    price: Decimal = Field(sa_column=Column(Numeric(27, 12), nullable=False))
    format: dict[str, Any] = Field(
        sa_column=Column(JSONB, nullable=False, server_default=text("'{}'"))
    )
    quality: dict[str, Any] = Field(
        sa_column=Column(JSONB, nullable=False, server_default=text("'{}'"))
    )


class OutagePolicy(SQLModel, table=True):
    """Units of a feature that may be used while Redis can not be reached, a user and process; 0 denies.

    For everyone (tier `*`) or one tier, of which feature `*` stands for any that is not named.
    """

    __tablename__ = "outage_policies"
    __table_args__ = (CheckConstraint("max >= 0", name="outage_policies_bounded"),)

    version: int = Field(sa_column=Column(Integer, primary_key=True))
    tier: str = Field(sa_column=label(nullable=False, primary_key=True))
    feature: str = Field(sa_column=label(nullable=False, primary_key=True))
    max: int = Field(sa_column=bigint())
