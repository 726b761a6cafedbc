"""Usage by day, month and lifetime, and the runs that are not folded into it yet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

SQL = Path(__file__).parents[1] / "sql" / revision
UPDATED = {"fillfactor": 70}
INSTANT = sa.DateTime(timezone=True)

TABLES = (
    "usage_runs",
    "stale_rollups",
    "rollup_state",
    "usage_daily",
    "usage_daily_actions",
    "usage_last_days",
    "usage_users_by_last_day",
    "usage_last_30_days",
    "user_active_days",
    "user_usage",
    "user_usage_features",
    "user_lifetime_stats",
)


def upgrade() -> None:
    """Make the tables, and have the job fill them for every user that there is."""
    make_notes()
    make_days()
    make_platform()
    make_months()
    make_lifetime()
    op.execute(
        """
        INSERT INTO rollup_state (window_since)
        VALUES ((now() AT TIME ZONE 'UTC')::date - 30)
        """
    )
    op.execute("INSERT INTO stale_rollups (user_id) SELECT id FROM users ORDER BY id")
    for name in ("note_changed_usage", "usage_logs_updated", "usage_logs_deleted"):
        op.execute((SQL / f"{name}.sql").read_text(encoding="utf-8"))


def downgrade() -> None:
    """Drop them: usage_logs and usage_refunds have all that they were made from."""
    op.execute("DROP TRIGGER usage_logs_updated ON usage_logs")
    op.execute("DROP TRIGGER usage_logs_deleted ON usage_logs")
    op.execute("DROP FUNCTION note_changed_usage")
    for table in reversed(TABLES):
        op.drop_table(table)


def make_notes() -> None:
    """Make what the job finds its work by."""
    op.create_table(
        "usage_runs",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        required("noted_at", INSTANT, default="now()"),
        required("records", sa.Integer()),
        optional("first_at", INSTANT),
        optional("last_at", INSTANT),
        required("users", sa.ARRAY(sa.Uuid())),
        required("ids", sa.ARRAY(sa.Uuid())),
        required("instants", sa.ARRAY(INSTANT)),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "stale_rollups",
        required("user_id", sa.Uuid()),
        sa.Column("change", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        required("noted_at", INSTANT, default="now()"),
        required("rows", sa.Integer(), default="0"),
        sa.PrimaryKeyConstraint("user_id", "change"),
    )
    op.create_table(
        "rollup_state",
        sa.Column(
            "id",
            sa.SmallInteger(),
            autoincrement=False,
            nullable=False,
            server_default=sa.text("1"),
        ),
        required("window_since", sa.Date()),
        required("streaks_ended_at", INSTANT, default="to_timestamp(0)"),
        required("platform_is_stale", sa.Boolean(), default="false"),
        sa.PrimaryKeyConstraint("id"),
        sa.CheckConstraint("id = 1", name="rollup_state_one_row"),
    )


def make_days() -> None:
    """Make what users did by day (seed 003)."""
    op.create_table(
        "usage_daily",
        required("user_id", sa.Uuid()),
        required("day", sa.Date()),
        required("action", sa.Text()),
        required("format", sa.Text(), default="''"),
        required("quality", sa.Text(), default="''"),
        number("uses"),
        number("units"),
        required("credits", sa.Numeric(22, 6), default="0"),
        sa.PrimaryKeyConstraint("user_id", "day", "action", "format", "quality"),
        postgresql_with=UPDATED,
    )
    op.create_index("idx_usage_daily_day", "usage_daily", ["day"])
    op.create_table(
        "user_active_days",
        required("user_id", sa.Uuid()),
        required("day", sa.Date()),
        required("uses", sa.BigInteger()),
        sa.PrimaryKeyConstraint("user_id", "day"),
        postgresql_with=UPDATED,
    )


def make_platform() -> None:
    """Make what is asked of everybody at once (seed 003)."""
    op.create_table(
        "usage_daily_actions",
        required("day", sa.Date()),
        required("action", sa.Text()),
        number("uses"),
        required("units", sa.Numeric(38, 0), default="0"),
        required("credits", sa.Numeric(38, 6), default="0"),
        sa.PrimaryKeyConstraint("day", "action"),
        postgresql_with=UPDATED,
    )
    op.create_table(
        "usage_last_days",
        required("user_id", sa.Uuid()),
        required("action", sa.Text()),
        required("last_day", sa.Date()),
        sa.PrimaryKeyConstraint("user_id", "action"),
        postgresql_with=UPDATED,
    )
    op.create_table(
        "usage_users_by_last_day",
        required("action", sa.Text()),
        required("last_day", sa.Date()),
        required("users", sa.BigInteger()),
        sa.PrimaryKeyConstraint("action", "last_day"),
        postgresql_with=UPDATED,
    )
    op.create_table(
        "usage_last_30_days",
        required("user_id", sa.Uuid()),
        number("uses"),
        required("credits", sa.Numeric(22, 6), default="0"),
        sa.PrimaryKeyConstraint("user_id"),
        postgresql_with=UPDATED,
    )
    op.create_index(
        "idx_usage_last_30_days_credits", "usage_last_30_days", [sa.text("credits DESC"), "user_id"]
    )


def make_months() -> None:
    """Make what users did by month (seed 002, option 1)."""
    op.create_table(
        "user_usage",
        required("user_id", sa.Uuid()),
        required("month", sa.Date()),
        *(
            number(name)
            for name in (
                "uses",
                "conversations",
                "seconds",
                "realtime_sessions",
                "anki_exports_used",
                "custom_phrases_created",
                "advanced_voice_seconds",
                "session_extensions_used",
                "completed_sessions",
                "average_session_length",
                "longest_session",
                "timed_sessions",
                "session_seconds",
                "overage_seconds",
            )
        ),
        optional("overage_after", sa.BigInteger()),
        required("tier_when_used", sa.Text(), default="'free'"),
        *(
            optional(name, INSTANT)
            for name in (
                "first_active_at",
                "last_active_at",
                "first_conversation_at",
                "last_conversation_at",
                "last_realtime_at",
            )
        ),
        sa.PrimaryKeyConstraint("user_id", "month"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], ondelete="CASCADE"),
        postgresql_with=UPDATED,
    )
    op.create_table(
        "user_usage_features",
        required("user_id", sa.Uuid()),
        required("month", sa.Date()),
        required("feature", sa.Text()),
        number("units"),
        number("uses"),
        sa.PrimaryKeyConstraint("user_id", "month", "feature"),
        postgresql_with=UPDATED,
    )


def make_lifetime() -> None:
    """Make what users ever did (seed 002, option 2)."""
    op.create_table(
        "user_lifetime_stats",
        required("user_id", sa.Uuid()),
        *(
            number(name)
            for name in (
                "total_conversations",
                "total_seconds",
                "total_realtime_sessions",
                "total_anki_exports",
                "total_custom_phrases",
                "total_advanced_voice_seconds",
                "total_session_extensions",
                "total_completed_sessions",
                "days_active",
                "longest_streak",
                "current_streak",
            )
        ),
        optional("streak_ends_on", sa.Date()),
        number("average_sessions_per_month"),
        optional("first_conversation_at", INSTANT),
        optional("first_active_at", INSTANT),
        optional("last_active_at", INSTANT),
        number("months_subscribed"),
        required("total_revenue", sa.Numeric(10, 2), default="0.00"),
        required("highest_tier_reached", sa.Text(), default="'free'"),
        required("created_at", INSTANT, default="now()"),
        required("updated_at", INSTANT, default="now()"),
        sa.PrimaryKeyConstraint("user_id"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], ondelete="CASCADE"),
        postgresql_with=UPDATED,
    )
    op.create_index(
        "idx_user_lifetime_stats_streaks",
        "user_lifetime_stats",
        ["streak_ends_on"],
        postgresql_where=sa.text("current_streak > 0"),
    )


def number(name: str) -> sa.Column[Any]:
    """Return a column that counts from 0."""
    return required(name, sa.BigInteger(), default="0")


def required(name: str, kind: Any, *, default: str | None = None) -> sa.Column[Any]:
    """Return a column that is never null; *default* is SQL."""
    server_default = None if default is None else sa.text(default)
    return sa.Column(name, kind, nullable=False, server_default=server_default)


def optional(name: str, kind: Any) -> sa.Column[Any]:
    """Return a column that may be null."""
    return sa.Column(name, kind, nullable=True)
