-- load_counters: every running counter of these users.
-- $1 uuid[]: users
SELECT user_id, feature,
       hour_start, hour_used, day_start, day_used, week_start, week_used, month_start, month_used,
       year_start, year_used, cycle_start, cycle_used, lifetime_used
FROM usage_counters
WHERE user_id = ANY ($1::uuid[])
