-- usage: what a user used of a feature over all time, and the micro-credits that it cost, less what was refunded.
-- $1 uuid user   $2 text feature
SELECT coalesce((SELECT usage_count FROM feature_usage WHERE user_id = $1 AND feature_name = $2), 0) AS used,
       coalesce(sum(l.credits_consumed * 1000000 - coalesce(r.applied_micro, 0)), 0)::bigint AS micro
FROM usage_logs l
LEFT JOIN (
    SELECT usage_id, sum(applied_micro) AS applied_micro FROM usage_refunds WHERE user_id = $1 GROUP BY usage_id
) r ON r.usage_id = l.id
WHERE l.user_id = $1 AND l.action = $2
