-- adoption_by_tier: how many users of each tier have used a feature, and how much; a tier that has no user is not there.
-- $1 text: feature   $2 timestamptz: who used it since then used it lately; the beginning of a UTC day
-- recent_units and first_used_on are those of all tiers, see `adoption`.
SELECT t.tier, t.everyone, coalesce(f.users, 0) AS users, coalesce(f.recent_users, 0) AS recent_users,
       coalesce(f.units, 0) AS units, f.last_used_at, coalesce(d.units, 0) AS recent_units, d.first_used_on
FROM (SELECT tier, count(*) AS everyone FROM users GROUP BY tier) t
LEFT JOIN (
    SELECT u.tier,
           count(*) FILTER (WHERE g.usage_count > 0) AS users,
           count(*) FILTER (WHERE g.usage_count > 0
                              AND coalesce(l.last_day, (g.last_used AT TIME ZONE 'UTC')::date) >= ($2 AT TIME ZONE 'UTC')::date
           ) AS recent_users,
           sum(g.usage_count) AS units,
           max(g.last_used) FILTER (WHERE g.usage_count > 0) AS last_used_at
    FROM feature_usage g
    JOIN users u ON u.id = g.user_id
    LEFT JOIN usage_last_days l ON l.user_id = g.user_id AND l.action = g.feature_name
    WHERE g.feature_name = $1
    GROUP BY u.tier
) f USING (tier)
CROSS JOIN (
    SELECT sum(units) FILTER (WHERE day >= ($2 AT TIME ZONE 'UTC')::date) AS units,
           min(day) FILTER (WHERE uses > 0) AS first_used_on
    FROM usage_daily_actions WHERE action = $1
) d
ORDER BY t.tier
