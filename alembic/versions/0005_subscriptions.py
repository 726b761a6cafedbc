"""Stretches on a tier, how they ended, and which of two tiers is the higher one."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the tables; without a row, a user has been on its tier since it was made."""
    make_subscriptions()
    make_subscription_events()
    # Of users on another tier than the default, nothing says since when: they are taken for made on it.
    op.execute(
        """
        INSERT INTO subscriptions (user_id, tier, started_at)
        SELECT id, tier, created_at FROM users
        WHERE tier <> (SELECT name FROM tiers WHERE is_default ORDER BY version DESC LIMIT 1)
        """
    )
    op.add_column("tiers", required("position", sa.SmallInteger(), default="0"))
    # The order in the files of old was not kept: what gives more stands behind what gives less.
    op.execute(
        """
        UPDATE tiers t SET position = o.place
        FROM (SELECT version, name, row_number() OVER (
                  PARTITION BY version ORDER BY is_default DESC, coalesce(allowance_micro, 0), name
              ) - 1 AS place
              FROM tiers) o
        WHERE o.version = t.version AND o.name = t.name
        """
    )


def downgrade() -> None:
    """Take them away again, and with them the history of tiers; each user stays on its tier."""
    op.drop_column("tiers", "position")
    op.drop_table("subscription_events")
    op.drop_table("subscriptions")


def make_subscriptions() -> None:
    """Make the table of stretches (seeds 002, 004)."""
    op.create_table(
        "subscriptions",
        required("user_id", sa.Uuid()),
        required("id", sa.Uuid(), default="gen_random_uuid()"),
        required("tier", sa.Text()),
        required("started_at", sa.DateTime(timezone=True)),
        optional("ends_at", sa.DateTime(timezone=True)),
        required("status", sa.Text(), default="'active'"),
        required("revenue", sa.Numeric(10, 2), default="0"),
        required("term_revenue", sa.Numeric(10, 2), default="0"),
        optional("ended_at", sa.DateTime(timezone=True)),
        required("created_at", sa.DateTime(timezone=True), default="now()"),
        required("counted_at", sa.DateTime(timezone=True), default="to_timestamp(0)"),
        sa.PrimaryKeyConstraint("user_id", "id"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], ondelete="CASCADE"),
        sa.CheckConstraint(
            "status IN ('active', 'ended', 'expired', 'canceled')",
            name="subscriptions_status_known",
        ),
        sa.CheckConstraint("(status = 'active') = (ended_at IS NULL)", name="subscriptions_ended"),
        sa.CheckConstraint(
            "ends_at > started_at AND ended_at >= started_at", name="subscriptions_forward"
        ),
        sa.CheckConstraint(
            "term_revenue >= 0 AND revenue >= term_revenue", name="subscriptions_revenue_bounded"
        ),
    )
    op.create_index(
        "uq_subscriptions_active",
        "subscriptions",
        ["user_id"],
        unique=True,
        postgresql_where=sa.text("status = 'active'"),
    )
    op.create_index(
        "idx_subscriptions_due",
        "subscriptions",
        ["ends_at", "user_id"],
        postgresql_where=sa.text("status = 'active' AND ends_at IS NOT NULL"),
    )
    op.create_index("idx_subscriptions_counted", "subscriptions", ["counted_at"])


def make_subscription_events() -> None:
    """Make the table of what billing is to be told."""
    op.create_table(
        "subscription_events",
        required("user_id", sa.Uuid()),
        required("subscription_id", sa.Uuid()),
        required("kind", sa.Text()),
        required("tier", sa.Text()),
        required("next_tier", sa.Text()),
        required("at", sa.DateTime(timezone=True)),
        optional("delivered_at", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("user_id", "subscription_id", "kind"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], ondelete="CASCADE"),
        sa.CheckConstraint(
            "kind IN ('ended', 'expired', 'canceled')", name="subscription_events_kind_known"
        ),
    )
    op.create_index(
        "idx_subscription_events_waiting",
        "subscription_events",
        ["at"],
        postgresql_where=sa.text("delivered_at IS NULL"),
    )


def required(name: str, kind: Any, *, default: str | None = None) -> Any:
    """A column that has a value in every row."""
    server_default = None if default is None else sa.text(default)
    return sa.Column(name, kind, nullable=False, server_default=server_default)


def optional(name: str, kind: Any) -> Any:
    """A column that may be null."""
    return sa.Column(name, kind, nullable=True)
