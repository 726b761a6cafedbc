"""What is summed up from the log of usage by day, month and lifetime, and what was not summed up yet.

A job folds the runs that the worker has applied, each exactly once (`service.rollups`). All of it is net of
refunds: units and credits that were given back are taken out, and a record of which all units were is no use.
"""

import datetime as dt
import uuid
from decimal import Decimal

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Date,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    Integer,
    Numeric,
    SmallInteger,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlmodel import Field, SQLModel

from models.columns import bigint, instant, label, user_id

__all__ = [
    "RollupState",
    "StaleRollup",
    "UsageDaily",
    "UsageDailyAction",
    "UsageLast30Days",
    "UsageLastDay",
    "UsageRun",
    "UsageUsersByLastDay",
    "UserActiveDay",
    "UserLifetimeStats",
    "UserUsage",
    "UserUsageFeature",
]

# Rows that every fold updates: room in their page keeps an update out of the indexes.
_UPDATED = {"postgresql_with": {"fillfactor": 70}}


def _day(*, primary_key: bool = False, nullable: bool = False) -> Column[dt.date]:
    return Column(Date, primary_key=primary_key, nullable=nullable)


def _credits() -> Column[Decimal]:
    """Credits of many records: more digits than one record has."""
    return Column(Numeric(22, 6), nullable=False, server_default=text("0"))


def _of_everybody(*, places: int) -> Column[Decimal]:
    """A sum over users, of whom each may fill 64 bits."""
    return Column(Numeric(38, places), nullable=False, server_default=text("0"))


def _user() -> Column[uuid.UUID]:
    """The user, who is there (seed 002): rows that are made once a month or less can afford to look."""
    return Column(
        Uuid, ForeignKey("users.id", ondelete="CASCADE"), primary_key=True, nullable=False
    )


class UsageRun(SQLModel, table=True):
    """Rows that one transaction wrote into `usage_logs` and that are not folded yet.

    They have the `xmin` of this row, because one transaction wrote both, and a `created_at` from `first_at` to
    `last_at`. Those whose `created_at` is far from the others' (late, backdated, held) are named one by one.
    Never updated: that would change its `xmin`.
    """

    __tablename__ = "usage_runs"

    id: int = Field(sa_column=Column(BigInteger, Identity(always=True), primary_key=True))
    noted_at: dt.datetime = Field(default=None, sa_column=instant(default_now=True))
    records: int = Field(sa_column=Column(Integer, nullable=False))
    first_at: dt.datetime | None = Field(default=None, sa_column=instant(nullable=True))
    last_at: dt.datetime | None = Field(default=None, sa_column=instant(nullable=True))
    users: list[uuid.UUID] = Field(sa_column=Column(ARRAY(Uuid), nullable=False))
    ids: list[uuid.UUID] = Field(sa_column=Column(ARRAY(Uuid), nullable=False))
    instants: list[dt.datetime] = Field(
        sa_column=Column(ARRAY(DateTime(timezone=True)), nullable=False)
    )


class StaleRollup(SQLModel, table=True):
    """A user whose rollups have to be made anew: a refund, another time zone, rows written by others.

    Whoever changes `usage_logs` or `usage_refunds` other than by a run writes one in the same transaction. For who
    updates or deletes rows of `usage_logs`, a trigger does; `rows` is how many, which a run may miss.
    """

    __tablename__ = "stale_rollups"

    user_id: uuid.UUID = Field(sa_column=user_id())
    change: int = Field(
        default=None, sa_column=Column(BigInteger, Identity(always=True), primary_key=True)
    )
    noted_at: dt.datetime = Field(default=None, sa_column=instant(default_now=True))
    rows: int = Field(
        default=0, sa_column=Column(Integer, nullable=False, server_default=text("0"))
    )


class RollupState(SQLModel, table=True):
    """The fence of the folding job, and since which day `usage_last_30_days` counts; one row.

    `streaks_ended_at` is when streaks were looked at for the last time.
    `platform_is_stale`: once nobody is in `stale_rollups`, what is about everybody has to be summed up anew.
    """

    __tablename__ = "rollup_state"
    __table_args__ = (CheckConstraint("id = 1", name="rollup_state_one_row"),)

    id: int = Field(
        default=1,
        sa_column=Column(
            SmallInteger, primary_key=True, autoincrement=False, server_default=text("1")
        ),
    )
    window_since: dt.date = Field(sa_column=_day())
    streaks_ended_at: dt.datetime = Field(
        default=None,
        sa_column=Column(instant().type, nullable=False, server_default=text("to_timestamp(0)")),
    )
    platform_is_stale: bool = Field(
        default=False, sa_column=Column(Boolean, nullable=False, server_default=text("false"))
    )


class UsageDaily(SQLModel, table=True):
    """Usage of a user by UTC day, action, format and quality (seed 003); '' stands for no format or quality."""

    __tablename__ = "usage_daily"
    __table_args__ = (
        Index("idx_usage_daily_day", "day"),  # what leaves the window of 30 days
        _UPDATED,
    )

    user_id: uuid.UUID = Field(sa_column=user_id())
    day: dt.date = Field(sa_column=_day(primary_key=True))
    action: str = Field(sa_column=label(nullable=False, primary_key=True))
    format: str = Field(default="", sa_column=label(nullable=False, default="", primary_key=True))
    quality: str = Field(default="", sa_column=label(nullable=False, default="", primary_key=True))
    uses: int = Field(default=0, sa_column=bigint(default=0))
    units: int = Field(default=0, sa_column=bigint(default=0))
    credits: Decimal = Field(default=Decimal(0), sa_column=_credits())


class UsageDailyAction(SQLModel, table=True):
    """Usage of everybody by UTC day and action (seed 003, platform-wide)."""

    __tablename__ = "usage_daily_actions"
    __table_args__ = (_UPDATED,)

    day: dt.date = Field(sa_column=_day(primary_key=True))
    action: str = Field(sa_column=label(nullable=False, primary_key=True))
    uses: int = Field(default=0, sa_column=bigint(default=0))
    units: Decimal = Field(default=Decimal(0), sa_column=_of_everybody(places=0))
    credits: Decimal = Field(default=Decimal(0), sa_column=_of_everybody(places=6))


class UsageLastDay(SQLModel, table=True):
    """The last UTC day on which a user did an action."""

    __tablename__ = "usage_last_days"
    __table_args__ = (_UPDATED,)

    user_id: uuid.UUID = Field(sa_column=user_id())
    action: str = Field(sa_column=label(nullable=False, primary_key=True))
    last_day: dt.date = Field(sa_column=_day())


class UsageUsersByLastDay(SQLModel, table=True):
    """How many users did an action last on a day.

    Summed over the days since D, that is exactly how many did it since D (seed 003: COUNT DISTINCT).
    """

    __tablename__ = "usage_users_by_last_day"
    __table_args__ = (_UPDATED,)

    action: str = Field(sa_column=label(nullable=False, primary_key=True))
    last_day: dt.date = Field(sa_column=_day(primary_key=True))
    users: int = Field(sa_column=bigint())


class UsageLast30Days(SQLModel, table=True):
    """Usage of a user on this UTC day and the 30 before it: all since an instant 30 days ago (seed 003: ranking)."""

    __tablename__ = "usage_last_30_days"
    __table_args__ = (
        Index("idx_usage_last_30_days_credits", text("credits DESC"), "user_id"),
        _UPDATED,
    )

    user_id: uuid.UUID = Field(sa_column=user_id())
    uses: int = Field(default=0, sa_column=bigint(default=0))
    credits: Decimal = Field(default=Decimal(0), sa_column=_credits())


class UserActiveDay(SQLModel, table=True):
    """A day in the user's time zone on which the user did something, and how often."""

    __tablename__ = "user_active_days"
    __table_args__ = (_UPDATED,)

    user_id: uuid.UUID = Field(sa_column=user_id())
    day: dt.date = Field(sa_column=_day(primary_key=True))
    uses: int = Field(sa_column=bigint())


class UserUsage(SQLModel, table=True):
    """Usage of a user in a calendar month of the user's time zone, `month` being its first day (seed 002, option 1).

    A session is a record that has `seconds` beside `completed_sessions` (else `conversations`); n of them in s
    seconds are s / n long each. `overage_seconds` are the `seconds` past `overage_after`, which is the soft monthly
    limit on them of `tier_when_used`: the tier that the user was on at the month's last use, as it was in force then.
    """

    __tablename__ = "user_usage"
    __table_args__ = (_UPDATED,)

    user_id: uuid.UUID = Field(sa_column=_user())
    month: dt.date = Field(sa_column=_day(primary_key=True))
    uses: int = Field(default=0, sa_column=bigint(default=0))
    conversations: int = Field(default=0, sa_column=bigint(default=0))
    seconds: int = Field(default=0, sa_column=bigint(default=0))
    realtime_sessions: int = Field(default=0, sa_column=bigint(default=0))
    anki_exports_used: int = Field(default=0, sa_column=bigint(default=0))
    custom_phrases_created: int = Field(default=0, sa_column=bigint(default=0))
    advanced_voice_seconds: int = Field(default=0, sa_column=bigint(default=0))
    session_extensions_used: int = Field(default=0, sa_column=bigint(default=0))
    completed_sessions: int = Field(default=0, sa_column=bigint(default=0))
    average_session_length: int = Field(default=0, sa_column=bigint(default=0))
    longest_session: int = Field(default=0, sa_column=bigint(default=0))
    timed_sessions: int = Field(default=0, sa_column=bigint(default=0))
    session_seconds: int = Field(default=0, sa_column=bigint(default=0))
    overage_seconds: int = Field(default=0, sa_column=bigint(default=0))
    overage_after: int | None = Field(default=None, sa_column=bigint(nullable=True))
    tier_when_used: str = Field(default="free", sa_column=label(nullable=False, default="free"))
    first_active_at: dt.datetime | None = Field(default=None, sa_column=instant(nullable=True))
    last_active_at: dt.datetime | None = Field(default=None, sa_column=instant(nullable=True))
    first_conversation_at: dt.datetime | None = Field(
        default=None, sa_column=instant(nullable=True)
    )
    last_conversation_at: dt.datetime | None = Field(default=None, sa_column=instant(nullable=True))
    last_realtime_at: dt.datetime | None = Field(default=None, sa_column=instant(nullable=True))


class UserUsageFeature(SQLModel, table=True):
    """Usage of a user by month and feature: the long form of `user_usage` (seed 002)."""

    __tablename__ = "user_usage_features"
    __table_args__ = (_UPDATED,)

    user_id: uuid.UUID = Field(sa_column=user_id())
    month: dt.date = Field(sa_column=_day(primary_key=True))
    feature: str = Field(sa_column=label(nullable=False, primary_key=True))
    units: int = Field(default=0, sa_column=bigint(default=0))
    uses: int = Field(default=0, sa_column=bigint(default=0))


class UserLifetimeStats(SQLModel, table=True):
    """What a user ever did (seed 002, option 2); every feature in long form is in `feature_usage`.

    `streak_ends_on` is the last active day, in the user's time zone; `current_streak` is 0 from a quarter of an hour
    at most after that streak is over, which `service.lifetime` knows to the instant. `months_subscribed`,
    `total_revenue` and `highest_tier_reached` come from subscriptions.
    """

    __tablename__ = "user_lifetime_stats"
    __table_args__ = (
        Index(
            "idx_user_lifetime_stats_streaks",  # which may be over
            "streak_ends_on",
            postgresql_where=text("current_streak > 0"),
        ),
        _UPDATED,
    )

    user_id: uuid.UUID = Field(sa_column=_user())
    total_conversations: int = Field(default=0, sa_column=bigint(default=0))
    total_seconds: int = Field(default=0, sa_column=bigint(default=0))
    total_realtime_sessions: int = Field(default=0, sa_column=bigint(default=0))
    total_anki_exports: int = Field(default=0, sa_column=bigint(default=0))
    total_custom_phrases: int = Field(default=0, sa_column=bigint(default=0))
    total_advanced_voice_seconds: int = Field(default=0, sa_column=bigint(default=0))
    total_session_extensions: int = Field(default=0, sa_column=bigint(default=0))
    total_completed_sessions: int = Field(default=0, sa_column=bigint(default=0))
    days_active: int = Field(default=0, sa_column=bigint(default=0))
    longest_streak: int = Field(default=0, sa_column=bigint(default=0))
    current_streak: int = Field(default=0, sa_column=bigint(default=0))
    streak_ends_on: dt.date | None = Field(default=None, sa_column=_day(nullable=True))
    average_sessions_per_month: int = Field(default=0, sa_column=bigint(default=0))
    first_conversation_at: dt.datetime | None = Field(
        default=None, sa_column=instant(nullable=True)
    )
    first_active_at: dt.datetime | None = Field(default=None, sa_column=instant(nullable=True))
    last_active_at: dt.datetime | None = Field(default=None, sa_column=instant(nullable=True))
    months_subscribed: int = Field(default=0, sa_column=bigint(default=0))
    total_revenue: Decimal = Field(
        default=Decimal(0),
        sa_column=Column(Numeric(10, 2), nullable=False, server_default=text("0.00")),
    )
    highest_tier_reached: str = Field(
        default="free", sa_column=label(nullable=False, default="free")
    )
    created_at: dt.datetime = Field(default=None, sa_column=instant(default_now=True))
    updated_at: dt.datetime = Field(default=None, sa_column=instant(default_now=True))
