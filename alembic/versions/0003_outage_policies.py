"""What may be used while Redis can not be reached."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table of policies; without a row, nothing may be used."""
    op.create_table(
        "outage_policies",
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("tier", sa.Text(), nullable=False),
        sa.Column("feature", sa.Text(), nullable=False),
        sa.Column("max", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("version", "tier", "feature"),
        sa.CheckConstraint("max >= 0", name="outage_policies_bounded"),
    )


def downgrade() -> None:
    """Take it away again, and with it what it allowed."""
    op.drop_table("outage_policies")
