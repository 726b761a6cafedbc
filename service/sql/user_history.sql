-- user_history (seed 003): the last records of a user.
-- $1 uuid user   $2 int: at most so many
SELECT id, user_id, action, amount, credits_consumed, metadata::text AS metadata, created_at, format, quality
FROM usage_logs
WHERE user_id = $1
ORDER BY created_at DESC
LIMIT $2
