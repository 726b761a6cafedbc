-- verify_uses: what users used of each feature by the log of usage, less what was refunded of it.
-- $1 uuid[] users
-- last_used: as it is said to have occurred   last_at: as it arrived   cost_micro: before refunds
-- refunded_micro: what came back of it
SELECT l.user_id, l.action AS feature, (sum(l.amount) - coalesce(sum(r.amount), 0))::bigint AS units,
       max(l.created_at) AS last_used, max(coalesce(l.arrived_at, l.created_at)) AS last_at,
       (sum(l.credits_consumed) * 1000000)::bigint AS cost_micro,
       coalesce(sum(r.applied_micro), 0)::bigint AS refunded_micro
FROM usage_logs l
LEFT JOIN (
    SELECT user_id, usage_id, sum(amount) AS amount, sum(applied_micro) AS applied_micro
    FROM usage_refunds WHERE user_id = ANY ($1::uuid[]) GROUP BY user_id, usage_id
) r ON r.user_id = l.user_id AND r.usage_id = l.id
WHERE l.user_id = ANY ($1::uuid[])
GROUP BY l.user_id, l.action
