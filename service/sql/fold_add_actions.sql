-- fold_add_actions: add `folded_daily` to what everybody did by day.
INSERT INTO usage_daily_actions AS d (day, action, uses, units, credits)
SELECT day, action, sum(uses), sum(units), sum(credits)
FROM folded_daily
GROUP BY 1, 2
ORDER BY 1, 2
ON CONFLICT (day, action) DO UPDATE
SET uses = d.uses + excluded.uses, units = d.units + excluded.units, credits = d.credits + excluded.credits
