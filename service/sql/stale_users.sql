-- stale_users: notes of users that changed, oldest first.
-- $1 uuid: only this user, or null for all   $2 int: at most so many
SELECT user_id, change
FROM stale_users
WHERE $1::uuid IS NULL OR user_id = $1
ORDER BY change
LIMIT $2
