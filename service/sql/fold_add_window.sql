-- fold_add_window: add `folded_daily` to what users did in the window of 30 days.
-- $1 date: the first day of the window
INSERT INTO usage_last_30_days AS w (user_id, uses, credits)
SELECT user_id, sum(uses), sum(credits)
FROM folded_daily
WHERE day >= $1
GROUP BY 1
ORDER BY 1
ON CONFLICT (user_id) DO UPDATE SET uses = w.uses + excluded.uses, credits = w.credits + excluded.credits
