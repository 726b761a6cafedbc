-- fold_add_daily: add `folded_daily` to what users did by day.
INSERT INTO usage_daily AS d (user_id, day, action, format, quality, uses, units, credits)
SELECT user_id, day, action, format, quality, uses, units, credits
FROM folded_daily
ORDER BY 1, 2, 3, 4, 5
ON CONFLICT (user_id, day, action, format, quality) DO UPDATE
SET uses = d.uses + excluded.uses, units = d.units + excluded.units, credits = d.credits + excluded.credits
