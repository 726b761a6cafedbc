"""The first tables: users, rules, the log of usage, what is counted from it, credits, positions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# Rows that are updated all the time: room in their page keeps an update out of the indexes.
UPDATED = {"fillfactor": 70}


def upgrade() -> None:
    """Make every table; a legacy `feature_usage` is put aside, and 0008 brings its rows over (seed 004)."""
    for name in ("legacy_columns", "legacy_bases", "legacy_relations", "put_aside"):
        op.execute(statement(name))
    make_users()
    make_rules()
    make_usage_logs()
    make_usage_keys()
    make_feature_usage()
    make_usage_counters()
    make_credit_grants()
    make_credit_entries()
    make_positions()
    op.execute(where_legacy(statement("refuse_writes")))
    op.execute(statement("freeze_name"))


def downgrade() -> None:
    """Drop every table; the partitions of usage_logs go with it, and a legacy `feature_usage` comes back."""
    for table in (
        "stale_users",
        "quarantined_records",
        "usage_shards",
        "credit_entries",
        "credit_grants",
        "usage_windows",
        "usage_counters",
        "feature_usage",
        "usage_keys",
        "usage_logs",
        "credit_prices",
        "tier_limits",
        "tiers",
        "users",
    ):
        op.drop_table(table)
    op.execute(statement("put_back"))


def where_legacy(function: str) -> str:
    """Return a statement that makes *function* where a legacy relation is: it lives in their schema."""
    return (
        "DO $where_legacy$ BEGIN IF to_regclass('allotment_legacy.put_aside') IS NOT NULL THEN EXECUTE $function$"
        f"{function}$function$; END IF; END $where_legacy$"
    )


def statement(name: str) -> str:
    """Return the SQL in alembic/sql/0001/NAME.sql."""
    return (Path(__file__).parents[1] / "sql" / revision / f"{name}.sql").read_text(
        encoding="utf-8"
    )


def make_users() -> None:
    """Make the table that every other refers to."""
    op.create_table(
        "users",
        required("id", sa.Uuid()),
        optional("external_id", sa.Text()),
        optional("username", sa.Text()),
        required("role", sa.Text(), default="'user'"),
        required("tier", sa.Text()),
        required("timezone", sa.Text(), default="'UTC'"),
        required("anchor", sa.DateTime(timezone=True), default="now()"),
        required("cycle_months", sa.SmallInteger(), default="1"),
        required("status", sa.Text(), default="'active'"),
        required("overage_micro", sa.BigInteger(), default="0"),
        required("created_at", sa.DateTime(timezone=True), default="now()"),
        sa.PrimaryKeyConstraint("id"),
        sa.CheckConstraint("role IN ('user', 'admin')", name="users_role_known"),
        sa.CheckConstraint("cycle_months BETWEEN 1 AND 120", name="users_cycle_months_bounded"),
        sa.CheckConstraint("overage_micro >= 0", name="users_overage_not_negative"),
    )
    op.create_index("idx_users_external_id", "users", ["external_id"])
    op.create_index("idx_users_tier", "users", ["tier"])


def make_rules() -> None:
    """Make the tables of tiers, limits and prices, which keep every version (seeds 002, 003)."""
    op.create_table(
        "tiers",
        required("version", sa.Integer()),
        required("name", sa.Text()),
        required("is_default", sa.Boolean(), default="false"),
        required("overdraft", sa.Boolean(), default="false"),
        optional("allowance_micro", sa.BigInteger()),
        optional("allowance_every", sa.Text()),
        required("thresholds", sa.ARRAY(sa.SmallInteger())),
        required("applied_at", sa.DateTime(timezone=True), default="now()"),
        sa.PrimaryKeyConstraint("version", "name"),
    )
    op.create_table(
        "tier_limits",
        required("version", sa.Integer()),
        required("tier", sa.Text()),
        required("feature", sa.Text()),
        required("position", sa.SmallInteger()),
        required("per", sa.Text()),
        required("mode", sa.Text()),
        optional("max", sa.BigInteger()),
        sa.PrimaryKeyConstraint("version", "tier", "feature", "position"),
        sa.CheckConstraint("mode IN ('hard', 'soft')", name="tier_limits_mode_known"),
    )
    op.create_table(
        "credit_prices",
        required("version", sa.Integer()),
        required("tier", sa.Text()),
        required("feature", sa.Text()),
        required("price", sa.Numeric(27, 12)),
        required("format", JSONB(), default="'{}'"),
        required("quality", JSONB(), default="'{}'"),
        sa.PrimaryKeyConstraint("version", "tier", "feature"),
    )


def make_usage_logs() -> None:
    """Make the log of usage: columns and indexes of seed 003, the event fields of seed 001."""
    op.create_table(
        "usage_logs",
        required("id", sa.Uuid(), default="gen_random_uuid()"),
        required("user_id", sa.Uuid()),
        required("action", sa.Text()),
        required("amount", sa.BigInteger(), default="1"),
        required("credits_consumed", sa.Numeric(16, 6), default="1.0"),
        optional("metadata", JSONB()),
        required("created_at", sa.DateTime(timezone=True), default="now()"),
        optional("format", sa.Text()),
        optional("quality", sa.Text()),
        optional("key", sa.Text()),
        required("line", sa.SmallInteger(), default="0"),
        optional("event_id", sa.Text()),
        optional("event_type", sa.Text()),
        optional("product_version", sa.Text()),
        optional("session_id", sa.Text()),
        sa.PrimaryKeyConstraint("id", "user_id", "created_at"),
        postgresql_partition_by="RANGE (created_at)",
    )
    newest = sa.text("created_at DESC")
    op.create_index("idx_usage_logs_user_created", "usage_logs", ["user_id", newest])
    op.create_index("idx_usage_logs_action", "usage_logs", ["action", newest])
    op.create_index("idx_usage_logs_format_quality", "usage_logs", ["format", "quality"])
    op.create_index("idx_usage_logs_created", "usage_logs", [newest])
    op.create_index("idx_usage_logs_credits", "usage_logs", [sa.text("credits_consumed DESC")])
    # Takes what has no month of its own yet (service.partitions): no time is refused.
    op.execute("CREATE TABLE usage_logs_default PARTITION OF usage_logs DEFAULT")


def make_usage_keys() -> None:
    """Make the table of the keys that callers chose."""
    op.create_table(
        "usage_keys",
        required("user_id", sa.Uuid()),
        required("mark", sa.Uuid()),
        required("usage_id", sa.Uuid()),
        required("created_at", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("user_id", "mark"),
    )


def make_feature_usage() -> None:
    """Make the table of seed 000, with the sync columns of seed 004."""
    op.create_table(
        "feature_usage",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        optional("user_id", sa.Uuid()),
        optional("feature_name", sa.String(100)),
        optional("metadata", JSONB()),
        optional("usage_count", sa.BigInteger(), default="1"),
        required("last_used", sa.DateTime(timezone=True), default="now()"),
        required("sync_status", sa.Text(), default="'synced'"),
        optional("last_synced_at", sa.DateTime(timezone=True)),
        required("discrepancy_count", sa.Integer(), default="0"),
        sa.PrimaryKeyConstraint("id"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], ondelete="CASCADE"),
        sa.UniqueConstraint("user_id", "feature_name", name="uq_feature_usage_user_feature"),
        postgresql_with=UPDATED,
    )
    op.create_index("idx_feature_usage_user_id", "feature_usage", ["user_id"])
    op.create_index("idx_feature_usage_name", "feature_usage", ["feature_name"])


def make_usage_counters() -> None:
    """Make the counters of the running periods."""
    counted: list[sa.Column[Any]] = []
    for period in ("hour", "day", "week", "month", "year", "cycle"):
        counted.append(required(f"{period}_start", sa.DateTime(timezone=True)))
        counted.append(required(f"{period}_used", sa.BigInteger()))
    op.create_table(
        "usage_counters",
        required("user_id", sa.Uuid()),
        required("feature", sa.Text()),
        *counted,
        required("lifetime_used", sa.BigInteger()),
        sa.PrimaryKeyConstraint("user_id", "feature"),
        postgresql_with=UPDATED,
    )
    op.create_table(
        "usage_windows",
        required("user_id", sa.Uuid()),
        required("feature", sa.Text()),
        required("seconds", sa.Integer()),
        required("ends_at", sa.DateTime(timezone=True)),
        required("used", sa.BigInteger()),
        sa.PrimaryKeyConstraint("user_id", "feature", "seconds"),
        postgresql_with=UPDATED,
    )


def make_credit_grants() -> None:
    """Make the amounts of credits that were granted."""
    op.create_table(
        "credit_grants",
        required("user_id", sa.Uuid()),
        required("id", sa.Uuid()),
        optional("name", sa.Text()),
        required("amount_micro", sa.BigInteger()),
        required("left_micro", sa.BigInteger()),
        required("priority", sa.SmallInteger(), default="1"),
        required("kind", sa.Text(), default="'granted'"),
        required("effective_at", sa.DateTime(timezone=True)),
        optional("expires_at", sa.DateTime(timezone=True)),
        optional("voided_at", sa.DateTime(timezone=True)),
        required("created_at", sa.DateTime(timezone=True), default="now()"),
        sa.PrimaryKeyConstraint("user_id", "id"),
        sa.UniqueConstraint("user_id", "name", name="uq_credit_grants_user_name"),
        sa.CheckConstraint(
            "amount_micro >= 0 AND left_micro BETWEEN 0 AND amount_micro",
            name="credit_grants_bounded",
        ),
        sa.CheckConstraint(
            "kind IN ('promo', 'granted', 'purchased')", name="credit_grants_kind_known"
        ),
        sa.CheckConstraint("expires_at > effective_at", name="credit_grants_expire_after_effect"),
        postgresql_with=UPDATED,
    )


def make_credit_entries() -> None:
    """Make the list of what was burnt, and of the grants that paid."""
    op.create_table(
        "credit_entries",
        required("user_id", sa.Uuid()),
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        optional("grant_id", sa.Uuid()),
        optional("usage_id", sa.Uuid()),
        required("kind", sa.Text()),
        required("amount_micro", sa.BigInteger()),
        required("created_at", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("user_id", "id"),
        sa.CheckConstraint("kind IN ('burn', 'repaid')", name="credit_entries_kind_known"),
    )


def make_positions() -> None:
    """Make what the worker remembers: how far it came, what it could not apply, whom to drop."""
    op.create_table(
        "usage_shards",
        sa.Column("shard", sa.SmallInteger(), autoincrement=False, nullable=False),
        required("epoch", sa.BigInteger(), default="0"),
        required("last_entry_id", sa.Text(), default="'0-0'"),
        required("lines_applied", sa.BigInteger(), default="0"),
        required("updated_at", sa.DateTime(timezone=True), default="now()"),
        sa.PrimaryKeyConstraint("shard"),
    )
    op.create_table(
        "quarantined_records",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        required("source", sa.Text()),
        required("place", sa.Text()),
        required("raw", sa.LargeBinary()),
        required("reason", sa.Text()),
        required("created_at", sa.DateTime(timezone=True), default="now()"),
        required("retries", sa.Integer(), default="0"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("source", "place", name="uq_quarantined_records_source_place"),
    )
    op.create_table(
        "stale_users",
        required("user_id", sa.Uuid()),
        sa.Column("change", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.PrimaryKeyConstraint("user_id", "change"),
    )


def required(name: str, kind: Any, *, default: str | None = None) -> sa.Column[Any]:
    """Return a column that is never null; *default* is SQL."""
    server_default = None if default is None else sa.text(default)
    return sa.Column(name, kind, nullable=False, server_default=server_default)


def optional(name: str, kind: Any, *, default: str | None = None) -> sa.Column[Any]:
    """Return a column that may be null; *default* is SQL."""
    server_default = None if default is None else sa.text(default)
    return sa.Column(name, kind, nullable=True, server_default=server_default)
