-- lifetime: what a user ever did, and the zone that the user's days are of.
-- $1 uuid user
SELECT l.*, u.timezone
FROM user_lifetime_stats l
LEFT JOIN users u ON u.id = l.user_id
WHERE l.user_id = $1
