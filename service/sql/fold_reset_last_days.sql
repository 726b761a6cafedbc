-- fold_reset_last_days: the last day of each action of users by usage_daily, and how many users each day has by it.
-- $1 uuid[] users
WITH moved AS (
    SELECT user_id, action, o.last_day AS before, d.day
    FROM (SELECT user_id, action, last_day FROM usage_last_days WHERE user_id = ANY ($1::uuid[])) o
    FULL JOIN (
        SELECT user_id, action, max(day) AS day FROM usage_daily
        WHERE user_id = ANY ($1::uuid[]) AND uses > 0
        GROUP BY 1, 2
    ) d USING (user_id, action)
    WHERE o.last_day IS DISTINCT FROM d.day
), gone AS (
    DELETE FROM usage_last_days l USING moved m
    WHERE l.user_id = m.user_id AND l.action = m.action AND m.day IS NULL
), set_days AS (
    INSERT INTO usage_last_days (user_id, action, last_day)
    SELECT user_id, action, day FROM moved WHERE day IS NOT NULL ORDER BY 1, 2
    ON CONFLICT (user_id, action) DO UPDATE SET last_day = excluded.last_day
)
INSERT INTO usage_users_by_last_day AS u (action, last_day, users)
SELECT action, day, sum(users)
FROM (SELECT action, day, 1 AS users FROM moved WHERE day IS NOT NULL
      UNION ALL
      SELECT action, before, -1 FROM moved WHERE before IS NOT NULL) changes
GROUP BY 1, 2
ORDER BY 1, 2
ON CONFLICT (action, last_day) DO UPDATE SET users = u.users + excluded.users
