-- legacy_compare: users and features of which legacy rows say something else than what was brought over, or of which
-- feature_usage or a lifetime's counter has less than that.
-- $1 int: at most so many   total: how many there are
-- What a downgrade added to legacy rows was in feature_usage already.  A user who was deleted has no use to compare.
-- deleted: units of rows that went from a legacy table since, with what they referred to.
WITH legacy AS (
    SELECT user_id, feature, sum(units) AS units FROM allotment_legacy.again()
    WHERE NOT set_aside AND user_id IS NOT NULL GROUP BY user_id, feature
), gone AS (
    SELECT user_id, feature, sum(units) AS units FROM allotment_legacy.deleted GROUP BY user_id, feature
), pairs AS (
    SELECT user_id, feature, greatest(0, l.units - coalesce(r.units, 0)) AS legacy,
           greatest(0, coalesce(l.units, 0) + g.units - coalesce(r.units, 0)) AS with_deleted, b.units AS brought
    FROM legacy l
    FULL JOIN legacy_feature_usage b USING (user_id, feature)
    LEFT JOIN allotment_legacy.returned r USING (user_id, feature)
    LEFT JOIN gone g USING (user_id, feature)
)
SELECT p.user_id, p.feature, p.legacy, p.brought, f.usage_count AS counted, c.lifetime_used AS lifetime,
       count(*) OVER () AS total
FROM pairs p
LEFT JOIN users u ON u.id = p.user_id
LEFT JOIN feature_usage f ON f.user_id = p.user_id AND f.feature_name = p.feature
LEFT JOIN usage_counters c ON c.user_id = p.user_id AND c.feature = p.feature
WHERE p.legacy IS DISTINCT FROM p.brought
  AND (p.brought BETWEEN coalesce(p.legacy, 0) AND p.with_deleted) IS NOT TRUE
   OR u.id IS NOT NULL AND (coalesce(f.usage_count, -1) < p.brought OR coalesce(c.lifetime_used, -1) < p.brought)
ORDER BY p.user_id, p.feature
LIMIT $1
