"""Recurring grants, every kind of entry, holds, refunds, late records."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

UPDATED = {"fillfactor": 70}
PERIODS = ("hour", "day", "week", "month", "year", "cycle")

# A UUIDv7 made of an instant and a digest, in SQL.
UUID7 = (
    "(encode(substring(int8send(floor(extract(epoch FROM {at}) * 1000)::bigint) FROM 3), 'hex')"
    " || '7' || substring(md5({of}), 1, 3) || '8' || substring(md5({of}), 4, 15))::uuid"
)


def upgrade() -> None:
    """Add the columns and tables; every row stays, and what was granted gets its entry."""
    op.add_column("users", optional("overage_at", sa.DateTime(timezone=True)))
    op.execute(
        """
        UPDATE users u SET overage_at = (
            SELECT e.created_at FROM credit_entries e
            WHERE e.user_id = u.id AND e.grant_id IS NULL ORDER BY e.id DESC LIMIT 1
        ) WHERE u.overage_micro > 0
        """
    )
    widen_usage_logs()
    widen_credit_grants()
    rebuild_credit_entries()
    write_grants_down()
    make_holds()
    make_usage_refunds()


def downgrade() -> None:
    """Take them away again; open holds are released, and entries that 0001 has no kind for go."""
    release_holds()
    op.drop_table("usage_refunds")
    op.drop_table("holds")
    restore_voided()
    restore_credit_entries()
    narrow_credit_grants()
    op.drop_index("idx_usage_logs_key", "usage_logs")
    op.drop_column("usage_logs", "arrived_at")
    op.drop_column("usage_logs", "late")
    op.drop_column("users", "overage_at")


def widen_usage_logs() -> None:
    """Let a record be late, and be found by its key."""
    op.add_column("usage_logs", required("late", sa.Boolean(), default="false"))
    op.add_column("usage_logs", optional("arrived_at", sa.DateTime(timezone=True)))
    op.create_index(
        "idx_usage_logs_key", "usage_logs", ["key"], postgresql_where=sa.text("key IS NOT NULL")
    )


def widen_credit_grants() -> None:
    """Let grants recur, and roll over."""
    op.add_column("credit_grants", optional("every", sa.Text()))
    op.add_column("credit_grants", optional("renewed_at", sa.DateTime(timezone=True)))
    op.add_column("credit_grants", optional("changed_at", sa.DateTime(timezone=True)))
    op.add_column("credit_grants", required("overused_micro", sa.BigInteger(), default="0"))
    op.add_column("credit_grants", required("min_rollover_micro", sa.BigInteger(), default="0"))
    op.add_column("credit_grants", required("max_rollover_micro", sa.BigInteger(), default="0"))
    op.drop_constraint("credit_grants_bounded", "credit_grants")
    for name, check in (
        ("credit_grants_bounded", "amount_micro >= 0 AND left_micro >= 0 AND overused_micro >= 0"),
        (
            "credit_grants_rollover_bounded",
            "min_rollover_micro >= 0 AND min_rollover_micro <= max_rollover_micro",
        ),
        ("credit_grants_every_known", "every IN ('day', 'week', 'month')"),
    ):
        op.create_check_constraint(name, "credit_grants", check)


def narrow_credit_grants() -> None:
    """Make grants as they were: the rest of what recurs stays, and does not recur any more."""
    op.execute("UPDATE credit_grants SET left_micro = amount_micro WHERE left_micro > amount_micro")
    for name in ("every_known", "rollover_bounded", "bounded"):
        op.drop_constraint(f"credit_grants_{name}", "credit_grants")
    op.create_check_constraint(
        "credit_grants_bounded",
        "credit_grants",
        "amount_micro >= 0 AND left_micro BETWEEN 0 AND amount_micro",
    )
    for name in (
        "max_rollover_micro",
        "min_rollover_micro",
        "overused_micro",
        "changed_at",
        "renewed_at",
        "every",
    ):
        op.drop_column("credit_grants", name)


def rebuild_credit_entries() -> None:
    """Key the entries by what they belong to: a burn by its usage, anything else by an id of its own."""
    set_aside("credit_entries")
    op.create_table(
        "credit_entries",
        required("user_id", sa.Uuid()),
        required("id", sa.Uuid()),
        sa.Column(
            "place",
            sa.SmallInteger(),
            nullable=False,
            autoincrement=False,
            server_default=sa.text("0"),
        ),
        optional("grant_id", sa.Uuid()),
        required("kind", sa.Text()),
        required("amount_micro", sa.BigInteger()),
        required("created_at", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("user_id", "id", "place"),
        sa.CheckConstraint(
            "kind IN ('granted', 'burn', 'repaid', 'refund', 'renewed', 'lapsed', 'voided', 'forgiven')",
            name="credit_entries_kind_known",
        ),
    )
    own = UUID7.format(at="created_at", of="id::text")
    op.execute(
        f"""
        INSERT INTO credit_entries (user_id, id, place, grant_id, kind, amount_micro, created_at)
        SELECT user_id, coalesce(usage_id, {own}),
               CASE WHEN usage_id IS NULL THEN 0
                    ELSE row_number() OVER (PARTITION BY user_id, usage_id ORDER BY id) - 1 END,
               grant_id, kind, amount_micro, created_at
        FROM credit_entries_before
        """  # noqa: S608
    )


def restore_credit_entries() -> None:
    """Number the entries again, in the order of time, and name the usage of each burn."""
    set_aside("credit_entries")
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
    op.execute(
        """
        INSERT INTO credit_entries (user_id, grant_id, usage_id, kind, amount_micro, created_at)
        SELECT user_id, grant_id, CASE WHEN kind = 'burn' THEN id END, kind, amount_micro, created_at
        FROM credit_entries_before WHERE kind IN ('burn', 'repaid')
        ORDER BY created_at, kind DESC, id, place
        """
    )


def set_aside(table: str) -> None:
    """Keep the rows of a table for this transaction, and drop it.

    To rename it would leave the names of its constraints taken, which PostgreSQL 18 has for every column.
    """
    op.execute(f"CREATE TEMPORARY TABLE {table}_before ON COMMIT DROP AS TABLE {table}")
    op.drop_table(table)


def write_grants_down() -> None:
    """Give every grant the entries that it has from now on when it is made, and when it is voided."""
    granted = UUID7.format(at="created_at", of="user_id::text || id || 'granted'")
    voided = UUID7.format(at="voided_at", of="user_id::text || id || 'voided'")
    op.execute(
        f"""
        INSERT INTO credit_entries (user_id, id, grant_id, kind, amount_micro, created_at)
        SELECT user_id, {granted}, id, 'granted', amount_micro, created_at
        FROM credit_grants WHERE amount_micro > 0
        """  # noqa: S608
    )
    op.execute(
        f"""
        INSERT INTO credit_entries (user_id, id, grant_id, kind, amount_micro, created_at)
        SELECT user_id, {voided}, id, 'voided', left_micro, voided_at
        FROM credit_grants WHERE voided_at IS NOT NULL AND left_micro > 0
        """  # noqa: S608
    )
    op.execute("UPDATE credit_grants SET left_micro = 0 WHERE voided_at IS NOT NULL")


def restore_voided() -> None:
    """Leave in voided grants what was left, as 0001 does."""
    op.execute(
        """
        UPDATE credit_grants g SET left_micro = least(g.amount_micro, g.left_micro + e.amount_micro)
        FROM (
            SELECT user_id, grant_id, sum(amount_micro)::bigint AS amount_micro
            FROM credit_entries WHERE kind = 'voided' GROUP BY 1, 2
        ) e
        WHERE g.user_id = e.user_id AND g.id = e.grant_id
        """
    )


def make_holds() -> None:
    """Make the table of units and credits that were set aside."""
    op.create_table(
        "holds",
        required("user_id", sa.Uuid()),
        required("key", sa.Text()),
        required("id", sa.Uuid()),
        required("feature", sa.Text()),
        required("amount", sa.BigInteger()),
        required("cost_micro", sa.BigInteger()),
        required("price", sa.Text()),
        required("record", JSONB()),
        required("payments", JSONB()),
        required("windows", JSONB()),
        required("reserved_at", sa.DateTime(timezone=True)),
        required("expires_at", sa.DateTime(timezone=True)),
        required("status", sa.Text(), default="'open'"),
        optional("committed_amount", sa.BigInteger()),
        optional("committed_micro", sa.BigInteger()),
        optional("ended_at", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("user_id", "key"),
        sa.CheckConstraint(
            "status IN ('open', 'committed', 'released', 'expired')", name="holds_status_known"
        ),
        sa.CheckConstraint(
            "(status = 'open') = (ended_at IS NULL)", name="holds_end_when_not_open"
        ),
        postgresql_with=UPDATED,
    )
    still_open = sa.text("status = 'open'")
    op.create_index("idx_holds_open", "holds", ["expires_at"], postgresql_where=still_open)
    op.create_index("idx_holds_open_user", "holds", ["user_id"], postgresql_where=still_open)


def make_usage_refunds() -> None:
    """Make the table of what was refunded."""
    op.create_table(
        "usage_refunds",
        required("user_id", sa.Uuid()),
        required("id", sa.Uuid()),
        required("refund_id", sa.Text()),
        required("usage_id", sa.Uuid()),
        required("key", sa.Text()),
        required("amount", sa.BigInteger()),
        required("credits_micro", sa.BigInteger()),
        required("applied_micro", sa.BigInteger()),
        required("at", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("user_id", "id"),
        sa.UniqueConstraint("user_id", "refund_id", name="uq_usage_refunds_user_refund"),
        sa.CheckConstraint(
            "amount >= 0 AND applied_micro BETWEEN 0 AND credits_micro",
            name="usage_refunds_bounded",
        ),
    )
    op.create_index("idx_usage_refunds_usage", "usage_refunds", ["user_id", "usage_id"])


def release_holds() -> None:
    """Give back what open holds have taken: to grants, to overage, and to the running counters and windows."""
    payments = """
        SELECT h.user_id, (p ->> 0)::uuid AS grant_id, sum((p ->> 1)::bigint)::bigint AS micro
        FROM holds h CROSS JOIN jsonb_array_elements(h.payments) AS p
        WHERE h.status = 'open' GROUP BY 1, 2
    """
    op.execute(
        f"""
        UPDATE credit_grants g SET left_micro = g.left_micro + p.micro
        FROM ({payments}) p WHERE g.user_id = p.user_id AND g.id = p.grant_id
        """  # noqa: S608
    )
    op.execute(
        f"""
        UPDATE users u SET overage_micro = greatest(0, u.overage_micro - p.micro)
        FROM ({payments}) p WHERE u.id = p.user_id AND p.grant_id IS NULL
        """  # noqa: S608
    )
    for per in PERIODS:
        op.execute(
            f"""
            UPDATE usage_counters c SET {per}_used = c.{per}_used - h.units
            FROM (
                SELECT h.user_id, h.feature, sum(h.amount)::bigint AS units
                FROM holds h JOIN usage_counters k USING (user_id, feature)
                WHERE h.status = 'open' AND h.reserved_at >= k.{per}_start GROUP BY 1, 2
            ) h
            WHERE c.user_id = h.user_id AND c.feature = h.feature
            """  # noqa: S608
        )
    op.execute(
        """
        UPDATE usage_counters c SET lifetime_used = c.lifetime_used - h.units
        FROM (
            SELECT user_id, feature, sum(amount)::bigint AS units
            FROM holds WHERE status = 'open' GROUP BY 1, 2
        ) h
        WHERE c.user_id = h.user_id AND c.feature = h.feature
        """
    )
    op.execute(
        """
        UPDATE usage_windows w SET used = greatest(0, w.used - h.units)
        FROM (
            SELECT h.user_id, h.feature, (x ->> 0)::int AS seconds,
                   to_timestamp(0) + (x ->> 1)::bigint * interval '1 millisecond' AS ends_at,
                   sum(h.amount)::bigint AS units
            FROM holds h CROSS JOIN jsonb_array_elements(h.windows) AS x
            WHERE h.status = 'open' GROUP BY 1, 2, 3, 4
        ) h
        WHERE (w.user_id, w.feature, w.seconds, w.ends_at) = (h.user_id, h.feature, h.seconds, h.ends_at)
        """
    )


def required(name: str, kind: Any, *, default: str | None = None) -> sa.Column[Any]:
    """Return a column that is never null; *default* is SQL."""
    server_default = None if default is None else sa.text(default)
    return sa.Column(name, kind, nullable=False, server_default=server_default)


def optional(name: str, kind: Any) -> sa.Column[Any]:
    """Return a column that may be null."""
    return sa.Column(name, kind, nullable=True)
