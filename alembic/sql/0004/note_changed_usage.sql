-- note_changed_usage: who changes or deletes rows of usage_logs has their users counted anew.
-- `was` and `becomes` are the rows before and after the statement; `rows` of a note says how many the fold may not find.
-- With the rights of the caller, who needs that of writing stale_rollups, and by schema, whatever the caller's path.
-- Not for INSERT: the worker notes its own rows by the run.
CREATE FUNCTION note_changed_usage() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format(
        'INSERT INTO %I.stale_rollups (user_id, rows) SELECT user_id, sum(rows) FROM (SELECT user_id, 1 AS rows FROM was %s) c '
        'GROUP BY user_id ORDER BY user_id',
        TG_TABLE_SCHEMA, CASE TG_OP WHEN 'UPDATE' THEN 'UNION ALL SELECT user_id, 0 FROM becomes' ELSE '' END
    );
    RETURN NULL;
END
$$
