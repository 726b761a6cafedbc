-- usage_alerts_view (seed 004): users near their limits now: 80 % of one is used, or as much as the lowest threshold of
-- their tier says.  From the counters that run; what was used of a limit of 0 has no percentage.
CREATE VIEW usage_alerts_view WITH (security_invoker = true) AS
WITH in_force AS (
    SELECT l.tier, l.feature, l.per, l.mode, l.max,
           least(80, (SELECT min(percent) FROM unnest(t.thresholds) AS percent)) AS near
    FROM tier_limits l
    JOIN tiers t ON t.version = l.version AND t.name = l.tier
    WHERE l.version = (SELECT max(version) FROM tiers) AND l.max IS NOT NULL
)
SELECT c.user_id, c.feature, l.per, l.mode, l.max AS "limit", s.used, round(100.0 * s.used / nullif(l.max, 0), 2) AS percent,
       p.ends_at AS resets_at
FROM usage_counters c
JOIN users u ON u.id = c.user_id
JOIN in_force l ON l.tier = u.tier AND l.per NOT LIKE 'window:%'
 AND (l.feature = c.feature
      OR l.feature = '*' AND (u.tier, c.feature) NOT IN (
          SELECT tier, feature FROM tier_limits WHERE version = (SELECT max(version) FROM tiers)))
CROSS JOIN LATERAL (
    SELECT CASE l.per WHEN 'hour' THEN c.hour_used WHEN 'day' THEN c.day_used WHEN 'week' THEN c.week_used
                      WHEN 'month' THEN c.month_used WHEN 'year' THEN c.year_used WHEN 'cycle' THEN c.cycle_used
                      ELSE c.lifetime_used END AS used,
           CASE l.per WHEN 'hour' THEN c.hour_start WHEN 'day' THEN c.day_start WHEN 'week' THEN c.week_start
                      WHEN 'month' THEN c.month_start WHEN 'year' THEN c.year_start WHEN 'cycle' THEN c.cycle_start
                      ELSE to_timestamp(0) END AS starts_at
) s
CROSS JOIN LATERAL usage_period(l.per, s.starts_at, u.timezone, u.anchor, u.cycle_months) p
WHERE s.used > 0 AND s.used >= l.max * l.near / 100.0 AND (p.ends_at > now() OR p.ends_at IS NULL)
UNION ALL
SELECT w.user_id, w.feature, l.per, l.mode, l.max, w.used, round(100.0 * w.used / nullif(l.max, 0), 2), w.ends_at
FROM usage_windows w
JOIN users u ON u.id = w.user_id
JOIN in_force l ON l.tier = u.tier AND l.per = 'window:' || w.seconds
 AND (l.feature = w.feature
      OR l.feature = '*' AND (u.tier, w.feature) NOT IN (
          SELECT tier, feature FROM tier_limits WHERE version = (SELECT max(version) FROM tiers)))
WHERE w.used > 0 AND w.used >= l.max * l.near / 100.0 AND w.ends_at > now()
