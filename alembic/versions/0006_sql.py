"""Views and functions for those who ask PostgreSQL itself (seeds 001 and 004)."""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

SQL = Path(__file__).parents[1] / "sql" / revision

# In the order in which each needs those before it.
MADE = (
    "usage_zone",
    "usage_zone_offset",
    "usage_offset_change",
    "usage_day_begins",
    "usage_cycle_begins",
    "usage_period",
    "usage_limits_of",
    "count_usage",
    "increment_feature_usage",
    "get_current_usage_stats",
    "update_feature_usage_timestamp",
    "feature_usage_timestamp",
    "feature_events",
    "usage_alerts_view",
    "find_by_schema",
)


def upgrade() -> None:
    """Make the views, the functions, and the trigger of feature_usage; what has their names is put aside (seed 004)."""
    for name in ("put_aside", *MADE):
        op.execute((SQL / f"{name}.sql").read_text(encoding="utf-8"))


def downgrade() -> None:
    """Drop them; no row is in any of them."""
    op.execute("DROP VIEW usage_alerts_view, feature_events")
    op.execute("DROP TRIGGER feature_usage_timestamp ON feature_usage")
    op.execute(
        """
        DROP FUNCTION update_feature_usage_timestamp, get_current_usage_stats, increment_feature_usage, count_usage,
                      usage_limits_of, usage_period, usage_cycle_begins, usage_day_begins, usage_offset_change,
                      usage_zone_offset, usage_zone
        """
    )
    op.execute((SQL / "put_back.sql").read_text(encoding="utf-8"))
