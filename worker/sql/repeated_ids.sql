-- repeated_ids: which of these records are logged already; ids carry their time, so few partitions are looked at.
-- $1 uuid[] ids   $2 uuid[] users   $3 timestamptz, $4 timestamptz: when they may have been logged
-- OFFSET 0 keeps it one look-up by key an id: by its statistics of yesterday, the planner may think today empty.
SELECT asked.id, asked.user_id
FROM unnest($1::uuid[], $2::uuid[]) AS asked(id, user_id)
CROSS JOIN LATERAL (
    SELECT FROM usage_logs l
    WHERE l.id = asked.id AND l.user_id = asked.user_id AND l.created_at BETWEEN $3 AND $4
    OFFSET 0
) AS logged
