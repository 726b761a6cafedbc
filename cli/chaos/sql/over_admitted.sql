-- over_admitted: units past a hard limit in usage_logs, by user, feature and period; and overage where a tier allows none.
-- Periods are those of date_trunc in the user's time zone, which owes nothing to the code that decided.
-- No feature with a hard limit is used by `record`, which may pass every limit.
WITH rule AS (
    SELECT tier, feature, per, max FROM tier_limits
    WHERE version = (SELECT max(version) FROM tiers) AND mode = 'hard' AND max IS NOT NULL
), period AS (
    SELECT sum(l.amount) AS units, r.max
    FROM usage_logs l
    JOIN users u ON u.id = l.user_id
    JOIN rule r ON r.tier = u.tier AND r.feature = l.action
    GROUP BY l.user_id, l.action, r.per, r.max,
             CASE r.per WHEN 'lifetime' THEN NULL ELSE date_trunc(r.per, l.created_at, u.timezone) END
)
SELECT (SELECT coalesce(sum(units - max) FILTER (WHERE units > max), 0)::bigint FROM period) AS units,
       (SELECT coalesce(sum(overage_micro), 0)::bigint FROM users WHERE tier <> 'enterprise') AS overdrawn_micro
