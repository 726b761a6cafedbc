-- due_subscriptions: users whose stretch on a tier is over, those that waited longest first, as the log names them.
-- $1 timestamptz: now   $2 timestamptz, $3 uuid: end and user of the last one seen, or nulls   $4 int: at most so many
-- $5 uuid[]: these users   $6 boolean: only, or all the others
SELECT coalesce(u.external_id, u.id::text) AS name, s.user_id, s.ends_at
FROM subscriptions s
JOIN users u ON u.id = s.user_id
WHERE s.status = 'active' AND s.ends_at <= $1
      AND ($2::timestamptz IS NULL OR (s.ends_at, s.user_id) > ($2, $3::uuid))
      AND (s.user_id = ANY ($5::uuid[])) = $6
ORDER BY s.ends_at, s.user_id
LIMIT $4
