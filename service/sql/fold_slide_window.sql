-- fold_slide_window: take the days that drop out of the window of 30 days away from it.
-- $1 date: the first day that it had   $2 date: the first day that it has now
WITH dropped AS (
    SELECT user_id, sum(uses) AS uses, sum(credits) AS credits
    FROM usage_daily WHERE day >= $1 AND day < $2
    GROUP BY 1
), emptied AS (
    DELETE FROM usage_last_30_days w USING dropped d
    WHERE w.user_id = d.user_id AND w.uses = d.uses AND w.credits = d.credits
), state AS (
    UPDATE rollup_state SET window_since = $2
)
UPDATE usage_last_30_days w SET uses = w.uses - d.uses, credits = w.credits - d.credits
FROM dropped d
WHERE w.user_id = d.user_id AND NOT (w.uses = d.uses AND w.credits = d.credits)
