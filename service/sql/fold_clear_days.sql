-- fold_clear_days: forget the active days of users, what they used of each feature by month, and their streaks.
-- $1 uuid[] users
WITH days AS (
    DELETE FROM user_active_days WHERE user_id = ANY ($1::uuid[])
), features AS (
    DELETE FROM user_usage_features WHERE user_id = ANY ($1::uuid[])
)
UPDATE user_lifetime_stats
SET days_active = 0, longest_streak = 0, current_streak = 0, streak_ends_on = NULL
WHERE user_id = ANY ($1::uuid[])
