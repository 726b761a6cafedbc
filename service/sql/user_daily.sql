-- user_daily (seed 003): what a user did in the last days, by day.
-- $1 uuid user   $2 int days before the last   $3 date: the last, or null for today, UTC
SELECT day, sum(uses)::bigint AS daily_actions, sum(credits) AS daily_credits
FROM usage_daily
WHERE user_id = $1 AND day >= coalesce($3::date, (now() AT TIME ZONE 'UTC')::date) - $2::int
  AND day <= coalesce($3::date, (now() AT TIME ZONE 'UTC')::date)
GROUP BY day
ORDER BY day DESC
