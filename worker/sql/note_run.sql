-- note_run: leave word of the rows that this transaction has written into usage_logs, see models.UsageRun.
-- $1 int: how many   $2 timestamptz, $3 timestamptz: their first and last created_at, but for those that are named:
-- $4 uuid[] users   $5 uuid[] ids   $6 timestamptz[] created_at
INSERT INTO usage_runs (records, first_at, last_at, users, ids, instants)
VALUES ($1, $2, $3, $4::uuid[], $5::uuid[], $6::timestamptz[])
