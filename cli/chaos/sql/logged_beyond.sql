-- logged_beyond: lines that are logged more than once, or under a key of which nobody was told that it is admitted.
-- $1 uuid[] users and $2 text[] keys that were admitted, or are unknown   $3 how many to show
SELECT l.user_id, coalesce(l.key, l.id::text) AS key, l.line, count(*) AS times, min(l.action) AS feature, min(l.amount) AS amount,
       min(l.created_at) AS first_at, max(coalesce(l.arrived_at, l.created_at)) AS last_at
FROM usage_logs l
GROUP BY 1, 2, 3
HAVING count(*) > 1 OR (l.user_id, coalesce(l.key, l.id::text)) NOT IN (SELECT * FROM unnest($1::uuid[], $2::text[]))
ORDER BY 1, 2, 3
LIMIT $3
