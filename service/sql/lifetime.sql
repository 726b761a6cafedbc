-- lifetime: what a user ever did, the zone that the user's days are of, and the streak of the last active day.
-- $1 uuid user
SELECT l.*, u.timezone,
       (SELECT count(*)
        FROM (SELECT day, row_number() OVER (ORDER BY day DESC)::int AS number
              FROM user_active_days WHERE user_id = l.user_id) d
        WHERE d.day = l.streak_ends_on + 1 - d.number) AS last_streak
FROM user_lifetime_stats l
LEFT JOIN users u ON u.id = l.user_id
WHERE l.user_id = $1
