-- use_by_tier: records and micro-credits of each tier and feature.
SELECT u.tier, l.action AS feature, count(*) AS records, (sum(l.credits_consumed) * 1000000)::bigint AS micro
FROM usage_logs l
JOIN users u ON u.id = l.user_id
GROUP BY u.tier, l.action
