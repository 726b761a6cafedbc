-- fold_runs: the runs that are not folded yet, in the order in which they were noted.
-- $1 int: at most so many
SELECT id, records, first_at, last_at FROM usage_runs ORDER BY id LIMIT $1
