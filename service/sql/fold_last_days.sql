-- fold_last_days: move users forward to the last day of each action in `folded_daily`, and count them there.
WITH moved AS (
    SELECT f.user_id, f.action, o.last_day AS before, f.day
    FROM (SELECT user_id, action, max(day) AS day FROM folded_daily WHERE uses > 0 GROUP BY 1, 2) f
    LEFT JOIN usage_last_days o USING (user_id, action)
    WHERE o.last_day IS NULL OR f.day > o.last_day
), set_days AS (
    INSERT INTO usage_last_days (user_id, action, last_day)
    SELECT user_id, action, day FROM moved ORDER BY 1, 2
    ON CONFLICT (user_id, action) DO UPDATE SET last_day = excluded.last_day
)
INSERT INTO usage_users_by_last_day AS u (action, last_day, users)
SELECT action, day, sum(users)
FROM (SELECT action, day, 1 AS users FROM moved
      UNION ALL
      SELECT action, before, -1 FROM moved WHERE before IS NOT NULL) changes
GROUP BY 1, 2
ORDER BY 1, 2
ON CONFLICT (action, last_day) DO UPDATE SET users = u.users + excluded.users
