-- fold_streaks: count the days of users who have new ones, in `folded_days`.
-- $1 timestamptz: now, or null for PostgreSQL's; a streak that is over then is none
-- One day after all the others, which is nearly all of them, is added to what is known; else all days are looked at.
WITH new_days AS (
    SELECT user_id, count(*) AS days, min(day) AS day FROM folded_days GROUP BY 1
), grown AS (
    SELECT n.user_id, n.day,
           CASE WHEN n.day = l.streak_ends_on + 1 THEN l.current_streak + 1 ELSE 1 END AS streak
    FROM new_days n
    JOIN user_lifetime_stats l USING (user_id)
    WHERE n.days = 1 AND (l.streak_ends_on IS NULL OR n.day > l.streak_ends_on)
      AND (l.current_streak > 0 OR n.day IS DISTINCT FROM l.streak_ends_on + 1)  -- else it was over, and is forgotten
), islands AS (
    -- Days of one streak differ from their number by the same date.
    SELECT d.user_id, d.day, d.day - row_number() OVER (PARTITION BY d.user_id ORDER BY d.day)::int AS island
    FROM user_active_days d
    WHERE d.user_id IN (SELECT user_id FROM new_days EXCEPT SELECT user_id FROM grown)
), streaks AS (
    SELECT user_id, island, count(*) AS days, max(day) AS last_day FROM islands GROUP BY 1, 2
), counted AS (
    SELECT user_id, sum(days) AS days_active, max(days) AS longest,
           (array_agg(days ORDER BY last_day DESC))[1] AS streak, max(last_day) AS last_day
    FROM streaks GROUP BY 1
    UNION ALL
    SELECT g.user_id, l.days_active + 1, greatest(l.longest_streak, g.streak), g.streak, g.day
    FROM grown g JOIN user_lifetime_stats l USING (user_id)
)
UPDATE user_lifetime_stats l
SET days_active = c.days_active, longest_streak = c.longest, streak_ends_on = c.last_day,
    current_streak = CASE WHEN c.last_day < (coalesce($1, now()) AT TIME ZONE usage_zone(u.timezone))::date - 1 THEN 0
                          ELSE c.streak END
FROM counted c
JOIN users u ON u.id = c.user_id
WHERE l.user_id = c.user_id
