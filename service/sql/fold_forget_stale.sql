-- fold_forget_stale: the rollups of these users are as they should be, by what was known at their changes.
-- $1 uuid[] users   $2 bigint[] changes
DELETE FROM stale_rollups s
USING unnest($1::uuid[], $2::bigint[]) AS done(user_id, change)
WHERE s.user_id = done.user_id AND s.change <= done.change
