-- platform_by_week (seed 003): what everybody did in the last days, by calendar week and action.
-- $1 int days before the last   $2 date: the last, or null for today, UTC
SELECT date_trunc('week', day::timestamp)::date AS week, action, sum(uses)::bigint AS weekly_actions, sum(credits) AS weekly_credits
FROM usage_daily_actions
WHERE day >= coalesce($2::date, (now() AT TIME ZONE 'UTC')::date) - $1::int
  AND day <= coalesce($2::date, (now() AT TIME ZONE 'UTC')::date)
GROUP BY 1, action
HAVING sum(uses) > 0
ORDER BY week DESC, weekly_credits DESC, action
