-- adoption: how many users have used each feature, and how much; the most used ones first.
-- $1 timestamptz: who used it since then used it lately; the beginning of a UTC day
-- recent_units and first_used_on are of the rollup by day, and so as new as the last fold; the latter is null where
--   all use is older than the log of usage.
-- The last day of a user is net of refunds; without one, all use is older than the log, or newer than the last fold.
SELECT f.*, coalesce(d.units, 0) AS recent_units, d.first_used_on
FROM (
    SELECT u.feature_name AS feature,
           count(*) FILTER (WHERE u.usage_count > 0) AS users,
           count(*) FILTER (WHERE u.usage_count > 0
                              AND coalesce(l.last_day, (u.last_used AT TIME ZONE 'UTC')::date) >= ($1 AT TIME ZONE 'UTC')::date
           ) AS recent_users,
           coalesce(sum(u.usage_count), 0) AS units,
           max(u.last_used) FILTER (WHERE u.usage_count > 0) AS last_used_at
    FROM feature_usage u
    LEFT JOIN usage_last_days l ON l.user_id = u.user_id AND l.action = u.feature_name
    WHERE u.user_id IS NOT NULL AND u.feature_name IS NOT NULL
    GROUP BY u.feature_name
) f
LEFT JOIN (
    SELECT action, sum(units) FILTER (WHERE day >= ($1 AT TIME ZONE 'UTC')::date) AS units,
           min(day) FILTER (WHERE uses > 0) AS first_used_on
    FROM usage_daily_actions
    GROUP BY action
) d ON d.action = f.feature
ORDER BY f.users DESC, f.feature
