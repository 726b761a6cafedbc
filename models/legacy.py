"""What was used before Allotment, by a legacy table: counted, but in no usage record."""

import datetime as dt
import uuid
from typing import Any

from sqlalchemy import CheckConstraint, Column
from sqlalchemy.dialects.postgresql import JSONB
from sqlmodel import Field, SQLModel

from models.columns import bigint, instant, label, user_id


class LegacyFeatureUsage(SQLModel, table=True):
    """Units that a user had used of a feature when its legacy rows were brought over (seed 004).

    Part of `feature_usage` and of lifetime counters, beside what usage_logs come to. It never changes.
    """

    __tablename__ = "legacy_feature_usage"
    __table_args__ = (
        CheckConstraint("units BETWEEN 0 AND 9007199254740991", name="legacy_units_bounded"),
    )

    user_id: uuid.UUID = Field(sa_column=user_id())
    feature: str = Field(sa_column=label(nullable=False, primary_key=True))
    units: int = Field(sa_column=bigint())
    last_used: dt.datetime = Field(sa_column=instant())
    usage_metadata: dict[str, Any] | None = Field(default=None, sa_column=Column("metadata", JSONB))
