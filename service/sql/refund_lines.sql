-- refund_lines: the lines of a record, each with what was refunded of it so far.
-- $1 uuid user   $2 text key   $3 uuid: the key as an id, or null
SELECT l.id, l.action AS feature, l.amount, (l.credits_consumed * 1000000)::bigint AS cost_micro,
       floor(extract(epoch FROM l.created_at) * 1000)::bigint AS created_ms,
       floor(extract(epoch FROM coalesce(l.arrived_at, l.created_at)) * 1000)::bigint AS arrived_ms,
       r.amount AS refunded, r.credits_micro AS refunded_micro,
       EXISTS (SELECT FROM holds h WHERE h.user_id = l.user_id AND h.key = $2) AS held
FROM usage_logs l
CROSS JOIN LATERAL (
    SELECT coalesce(sum(amount), 0)::bigint AS amount, coalesce(sum(credits_micro), 0)::bigint AS credits_micro
    FROM usage_refunds r WHERE r.user_id = l.user_id AND r.usage_id = l.id
) r
WHERE l.user_id = $1 AND (l.key = $2 OR l.id = $3)
ORDER BY l.line
