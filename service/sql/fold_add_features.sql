-- fold_add_features: add `folded` to what users used of each feature by month.
INSERT INTO user_usage_features AS f (user_id, month, feature, units, uses)
SELECT user_id, date_trunc('month', local_day::timestamp)::date, action, sum(units), sum(uses)
FROM folded
GROUP BY 1, 2, 3
HAVING sum(uses) > 0
ORDER BY 1, 2, 3
ON CONFLICT (user_id, month, feature) DO UPDATE
SET units = f.units + excluded.units, uses = f.uses + excluded.uses
