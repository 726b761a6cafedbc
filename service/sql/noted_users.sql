-- noted_users: which of these users changed, and are to be dropped from Redis.
-- $1 uuid[] users
SELECT DISTINCT user_id FROM stale_users WHERE user_id = ANY ($1::uuid[])
