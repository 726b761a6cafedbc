-- recount_user: set a user's running counters to what the log has since these starts.
-- :user_id uuid   :hour_start, :day_start, :week_start, :month_start, :year_start, :cycle_start timestamptz
UPDATE usage_counters c
SET hour_start = :hour_start, hour_used = coalesce(u.hour_used, 0),
    day_start = :day_start, day_used = coalesce(u.day_used, 0),
    week_start = :week_start, week_used = coalesce(u.week_used, 0),
    month_start = :month_start, month_used = coalesce(u.month_used, 0),
    year_start = :year_start, year_used = coalesce(u.year_used, 0),
    cycle_start = :cycle_start, cycle_used = coalesce(u.cycle_used, 0)
FROM (
    SELECT k.feature,
           (sum(l.amount) FILTER (WHERE l.created_at >= :hour_start))::bigint AS hour_used,
           (sum(l.amount) FILTER (WHERE l.created_at >= :day_start))::bigint AS day_used,
           (sum(l.amount) FILTER (WHERE l.created_at >= :week_start))::bigint AS week_used,
           (sum(l.amount) FILTER (WHERE l.created_at >= :month_start))::bigint AS month_used,
           (sum(l.amount) FILTER (WHERE l.created_at >= :year_start))::bigint AS year_used,
           (sum(l.amount) FILTER (WHERE l.created_at >= :cycle_start))::bigint AS cycle_used
    FROM usage_counters k
    LEFT JOIN usage_logs l
           ON l.user_id = k.user_id AND l.action = k.feature
          AND l.created_at >= least(:year_start, :cycle_start, :week_start)
    WHERE k.user_id = :user_id
    GROUP BY k.feature
) u
WHERE c.user_id = :user_id AND c.feature = u.feature
