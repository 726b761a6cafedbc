-- verify_stale_rollups: those of users whose rollups are known to be made anew.
-- $1 uuid[] users
SELECT DISTINCT user_id FROM stale_rollups WHERE user_id = ANY ($1::uuid[])
