-- overdue_holds: users with a hold that should have ended by now, as the log names them.
-- $1 timestamptz: before when   $2 int: at most so many
SELECT DISTINCT coalesce(u.external_id, u.id::text) AS name
FROM holds h
JOIN users u ON u.id = h.user_id
WHERE h.status = 'open' AND h.expires_at < $1
LIMIT $2
