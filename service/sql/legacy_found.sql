-- legacy_found: what has a name of legacy feature usage, and what becomes of it (alembic/sql/0001/legacy_relations.sql).
-- $1 bool: whether the name `feature_usage` is ours already
SELECT name, kind, rows, state, note FROM pg_temp.legacy_relations(migrated => $1) ORDER BY name
