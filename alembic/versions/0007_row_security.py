"""Row-level security (seeds 003 and 004): users see their own rows, admins all.

The service owns the tables, and is not subject to it. A later table with rows of users needs one line:
``op.execute("SELECT protect_user_rows('name_of_the_table')")``.
"""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

SQL = Path(__file__).parents[1] / "sql"


def upgrade() -> None:
    """Make the roles and the policies, and let `increment_feature_usage` ask who calls."""
    run("0007/roles")
    run("0007/allotment_user_id")
    run("0007/protect_user_rows")
    run("0007/protect_tables")
    run("0007/increment_feature_usage")
    run("0006/find_by_schema")  # who makes a function anew has made it without its path
    run("0007/grant_rest")


def downgrade() -> None:
    """Drop the policies; the roles are the cluster's, and stay."""
    run("0006/increment_feature_usage")
    run("0006/find_by_schema")
    run("0007/unprotect_tables")
    op.execute("DROP FUNCTION protect_user_rows, allotment_user_id")


def run(name: str) -> None:
    """Run the statement of a file."""
    op.execute((SQL / f"{name}.sql").read_text(encoding="utf-8"))
