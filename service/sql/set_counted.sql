-- set_counted: note that user_lifetime_stats counts these stretches as they are.
-- $1 uuid[] users   $2 uuid[] stretches   $3 timestamptz now
UPDATE subscriptions s
SET counted_at = $3
FROM unnest($1::uuid[], $2::uuid[]) AS c (user_id, id)
WHERE s.user_id = c.user_id AND s.id = c.id
