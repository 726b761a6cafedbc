-- get_current_usage_stats (seed 004): what a user has used of each limit of the tier in the periods that run now.
-- A feature without a limit has one row, of how often it was ever used; one that was never used has no last use.
-- percent is null where there is no maximum, or it is 0; a window that is not open has nothing to reset.
CREATE FUNCTION get_current_usage_stats(user_id uuid) RETURNS TABLE (
    feature text, per text, used bigint, "limit" bigint, mode text, percent numeric, resets_at timestamptz,
    usage_count bigint, last_used timestamptz
)
LANGUAGE sql STABLE
BEGIN ATOMIC
SELECT f.feature, l.per, s.used, l.max, l.mode, round(100.0 * s.used / nullif(l.max, 0), 2),
       coalesce(p.ends_at, w.ends_at), coalesce(e.usage_count, 0), e.last_used
FROM users u
CROSS JOIN LATERAL (
    SELECT t.feature FROM tier_limits t
    WHERE t.version = (SELECT max(version) FROM tiers) AND t.tier = u.tier AND t.feature <> '*'
    UNION
    SELECT k.feature FROM usage_counters k WHERE k.user_id = u.id
    UNION
    SELECT k.feature_name FROM feature_usage k WHERE k.user_id = u.id AND k.feature_name IS NOT NULL
) f
LEFT JOIN LATERAL usage_limits_of(u.tier, f.feature) l ON true
LEFT JOIN usage_counters c ON c.user_id = u.id AND c.feature = f.feature
LEFT JOIN usage_windows w ON w.user_id = u.id AND w.feature = f.feature AND l.per = 'window:' || w.seconds AND w.ends_at > now()
LEFT JOIN feature_usage e ON e.user_id = u.id AND e.feature_name = f.feature
CROSS JOIN LATERAL usage_period(coalesce(l.per, ''), now(), u.timezone, u.anchor, u.cycle_months) p
CROSS JOIN LATERAL (
    SELECT CASE WHEN l.per IS NOT NULL THEN coalesce(CASE l.per
        WHEN 'hour' THEN CASE WHEN c.hour_start = p.starts_at THEN c.hour_used END
        WHEN 'day' THEN CASE WHEN c.day_start = p.starts_at THEN c.day_used END
        WHEN 'week' THEN CASE WHEN c.week_start = p.starts_at THEN c.week_used END
        WHEN 'month' THEN CASE WHEN c.month_start = p.starts_at THEN c.month_used END
        WHEN 'year' THEN CASE WHEN c.year_start = p.starts_at THEN c.year_used END
        WHEN 'cycle' THEN CASE WHEN c.cycle_start = p.starts_at THEN c.cycle_used END
        WHEN 'lifetime' THEN c.lifetime_used
        ELSE w.used
    END, 0) END AS used
) s
WHERE u.id = get_current_usage_stats.user_id
ORDER BY f.feature, l.position;
END
