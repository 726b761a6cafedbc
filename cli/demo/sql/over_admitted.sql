-- over_admitted: units that `consume` let past a hard limit, counted anew from usage_logs by user, feature and period.
-- Periods are those of date_trunc in the user's time zone, which owes nothing to the code that decided.
-- What `record` counted is left out: it may pass every limit.
WITH rule AS (
    SELECT tier, feature, position, per, max, mode FROM tier_limits WHERE version = (SELECT max(version) FROM tiers)
), consumed AS (
    SELECT g.user_id, g.feature, g.amount, g.created_at, u.tier, u.timezone
    FROM demo_logged g
    JOIN demo_ledger d USING (user_id, key, line)
    JOIN users u ON u.id = g.user_id
    WHERE d.verb = 'consume'
), named AS (
    SELECT c.tier, c.feature,
           CASE WHEN EXISTS (SELECT FROM rule r WHERE r.tier = c.tier AND r.feature = c.feature) THEN c.feature ELSE '*' END AS rule
    FROM (SELECT DISTINCT tier, feature FROM consumed) c
), period AS (
    SELECT sum(c.amount) AS units, r.max
    FROM consumed c
    JOIN named n ON n.tier = c.tier AND n.feature = c.feature
    JOIN rule r ON r.tier = c.tier AND r.feature = n.rule
    WHERE r.mode = 'hard' AND r.max IS NOT NULL
    GROUP BY c.user_id, c.feature, r.position, r.max,
             CASE r.per WHEN 'lifetime' THEN NULL ELSE date_trunc(r.per, c.created_at, c.timezone) END
)
SELECT coalesce(sum(units - max) FILTER (WHERE units > max), 0)::bigint FROM period
