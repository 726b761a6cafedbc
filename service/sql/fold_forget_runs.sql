-- fold_forget_runs: these runs are folded.
-- $1 bigint[] runs
DELETE FROM usage_runs WHERE id = ANY ($1::bigint[])
