-- user_by_action (seed 003): what a user did in the last days, by action.
-- $1 uuid user   $2 int days before the last   $3 date: the last, or null for today, UTC
SELECT action, sum(uses)::bigint AS action_count, sum(credits) AS total_credits,
       round(sum(credits) / nullif(sum(uses), 0), 6) AS avg_credits
FROM usage_daily
WHERE user_id = $1 AND day >= coalesce($3::date, (now() AT TIME ZONE 'UTC')::date) - $2::int
  AND day <= coalesce($3::date, (now() AT TIME ZONE 'UTC')::date)
GROUP BY action
ORDER BY total_credits DESC, action
