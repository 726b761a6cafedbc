-- repeated_ids: which of these records are logged already in the {partition} of usage_logs.
-- $1 uuid[] ids   $2 uuid[] users
-- One look-up by key an id, whatever the planner thinks: OFFSET 0 keeps it from joining otherwise, and a comparison of
-- rows, which no index but the key can serve, from reading all of a day or of a user. Its statistics may be of the
-- moment at which a new partition was empty; then every index seems as good, and a run takes minutes.
SELECT asked.id, asked.user_id
FROM unnest($1::uuid[], $2::uuid[]) AS asked(id, user_id)
CROSS JOIN LATERAL (
    SELECT FROM {partition} l
    WHERE (l.id, l.user_id) >= (asked.id, asked.user_id) AND (l.id, l.user_id) <= (asked.id, asked.user_id)
    OFFSET 0
) AS logged
