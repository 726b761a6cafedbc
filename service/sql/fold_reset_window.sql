-- fold_reset_window: what users did in the window of 30 days, by usage_daily.
-- $1 uuid[] users   $2 date: the first day of the window
WITH summed AS (
    SELECT u.user_id, coalesce(sum(d.uses), 0) AS uses, coalesce(sum(d.credits), 0) AS credits
    FROM unnest($1::uuid[]) AS u(user_id)
    LEFT JOIN usage_daily d ON d.user_id = u.user_id AND d.day >= $2
    GROUP BY 1
), emptied AS (
    DELETE FROM usage_last_30_days w USING summed s
    WHERE w.user_id = s.user_id AND s.uses = 0 AND s.credits = 0
)
INSERT INTO usage_last_30_days (user_id, uses, credits)
SELECT user_id, uses, credits FROM summed WHERE uses <> 0 OR credits <> 0
ORDER BY 1
ON CONFLICT (user_id) DO UPDATE SET uses = excluded.uses, credits = excluded.credits
