-- adoption: how many users have used each feature, and how much; the most used ones first.
-- $1 timestamptz: who used it since then used it lately; the beginning of a UTC day
-- recent_units and first_used_on are of the rollup by day, and so as new as the last fold; the latter is null where
--   all use is older than the log of usage.
SELECT f.*, coalesce(d.units, 0) AS recent_units, d.first_used_on
FROM (
    SELECT feature_name AS feature,
           count(*) FILTER (WHERE usage_count > 0) AS users,
           count(*) FILTER (WHERE usage_count > 0 AND last_used >= $1) AS recent_users,
           coalesce(sum(usage_count), 0)::bigint AS units,
           max(last_used) FILTER (WHERE usage_count > 0) AS last_used_at
    FROM feature_usage
    WHERE user_id IS NOT NULL AND feature_name IS NOT NULL
    GROUP BY feature_name
) f
LEFT JOIN (
    SELECT action, sum(units) FILTER (WHERE day >= ($1 AT TIME ZONE 'UTC')::date)::bigint AS units,
           min(day) FILTER (WHERE uses > 0) AS first_used_on
    FROM usage_daily_actions
    GROUP BY action
) d ON d.action = f.feature
ORDER BY f.users DESC, f.feature
