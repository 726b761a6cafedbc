"""Bring over the rows of a legacy `user_feature_usage` table and `feature_usage` view or table (seed 004).

Batch by batch, each a transaction of its own, with the place up to which was read: who dies goes on from there.
Nobody who reads the legacy relations waits; writes to them are refused from the first row on.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import sqlalchemy as sa
from alembic import context, op
from sqlalchemy.dialects.postgresql import JSONB

from quota.errors import InvalidValueError
from quota.values import parse_user_id

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

SQL = Path(__file__).parents[1] / "sql" / revision

FUNCTIONS = (
    "json_of",
    "number_of",
    "instant_of",
    "user_of",
    "note_deleted",
    "read_anew",
    "read",
    "settle",
    "again",
)
# Once more: 0001 may have run in another session, or in an earlier version.
OF_0001 = ("legacy_columns", "legacy_bases", "legacy_relations", "refuse_writes")
# A second's work each, so that no lock and no snapshot is kept for longer.
READ = sa.text("SELECT more, rows, share FROM allotment_legacy.read(250)")
BLOCKS_MAX = 1_000
SOURCES_OF_TEXT = sa.text(
    "SELECT relation::text, quote_ident(person_column),"
    " pg_relation_size(relation) / current_setting('block_size')::bigint"
    " FROM allotment_legacy.sources WHERE person_is_text"
)
ADD_PEOPLE = sa.text(
    "INSERT INTO allotment_legacy.people (name, id, external_id)"
    " SELECT * FROM unnest(CAST(:names AS text[]), CAST(:ids AS uuid[]), CAST(:external_ids AS text[]))"
    " ON CONFLICT (name) DO NOTHING"
)
SETTLE = sa.text("SELECT more, rows, share FROM allotment_legacy.settle(20000)")


def upgrade() -> None:
    """Make the table of what was brought over, and bring it over, where there is anything."""
    op.create_table(
        "legacy_feature_usage",
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("feature", sa.Text(), nullable=False),
        sa.Column("units", sa.BigInteger(), nullable=False),
        sa.Column("last_used", sa.DateTime(timezone=True), nullable=False),
        sa.Column("metadata", JSONB(), nullable=True),
        sa.PrimaryKeyConstraint("user_id", "feature"),
        sa.CheckConstraint("units BETWEEN 0 AND 9007199254740991", name="legacy_units_bounded"),
        if_not_exists=True,  # by a run that did not come to its end
    )
    op.execute(statement("begin"))
    for name in OF_0001:
        op.execute(where_legacy((SQL.parent / "0001" / f"{name}.sql").read_text(encoding="utf-8")))
    for name in FUNCTIONS:
        op.execute(where_legacy(statement(name)))
    op.execute(statement("sources"))
    if context.is_offline_mode():
        op.execute(statement("all"))
    else:
        bring_over()
    op.execute(statement("end"))
    op.execute(
        "SELECT protect_user_rows('legacy_feature_usage')"
    )  # last: nothing may see it before


def downgrade() -> None:
    """Bring the legacy rows back, with what was used since."""
    op.execute(statement("give_back"))
    op.drop_table("legacy_feature_usage")


def bring_over() -> None:
    """Read and settle every batch; whoever migrates is told how far it is."""
    if op.get_bind().scalar(sa.text("SELECT to_regclass('allotment_legacy.sources')")) is None:
        return  # and all of this revision is one transaction
    tell = context.config.attributes.get("tell")
    with op.get_context().autocommit_block():
        know_people()
        for step, call in (("reading legacy rows", READ), ("counting legacy rows", SETTLE)):
            more = True
            while more:
                more, rows, share = op.get_bind().execute(call).one()
                if tell is not None:
                    tell(step, rows, share)


def know_people() -> None:
    """Make the ids of users known by a text: SHA-1 takes PostgreSQL a hundred times as long (user_of.sql)."""
    connection = op.get_bind()
    for relation, column, blocks in connection.execute(SOURCES_OF_TEXT).all():
        names = sa.text(
            f"SELECT DISTINCT t.{column}::text FROM {relation} t"  # noqa: S608  both quoted by PostgreSQL
            " WHERE t.ctid >= CAST(:first AS text)::tid AND t.ctid < CAST(:end AS text)::tid"
            f" AND NOT EXISTS (SELECT FROM allotment_legacy.people p WHERE p.name = t.{column}::text)"
        )
        for block in range(0, blocks, BLOCKS_MAX):
            places = {"first": f"({block},0)", "end": f"({block + BLOCKS_MAX},0)"}
            users = {}
            for name in connection.scalars(names, places):
                with suppress(InvalidValueError):  # its rows are kept aside
                    users[name] = parse_user_id(name)
            if users:
                ids = [user.id for user in users.values()]
                external = [user.external_id for user in users.values()]
                connection.execute(
                    ADD_PEOPLE, {"names": list(users), "ids": ids, "external_ids": external}
                )


def where_legacy(function: str) -> str:
    """Return a statement that makes *function* where there are legacy rows: it lives in their schema."""
    return (
        "DO $where_legacy$ BEGIN IF to_regclass('allotment_legacy.sources') IS NOT NULL THEN EXECUTE $function$"
        f"{function}$function$; END IF; END $where_legacy$"
    )


def statement(name: str) -> str:
    """Return the SQL in alembic/sql/0008/NAME.sql."""
    return (SQL / f"{name}.sql").read_text(encoding="utf-8")
