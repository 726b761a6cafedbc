-- user_credit_summary (seed 003): what a user did in the last days, together.
-- $1 uuid user   $2 int days before the last   $3 date: the last, or null for today, UTC
SELECT coalesce(sum(credits), 0) AS total_credits_consumed, coalesce(sum(uses), 0)::bigint AS total_actions,
       round(sum(credits) / nullif(sum(uses), 0), 6) AS avg_credits_per_action
FROM usage_daily
WHERE user_id = $1 AND day >= coalesce($3::date, (now() AT TIME ZONE 'UTC')::date) - $2::int
  AND day <= coalesce($3::date, (now() AT TIME ZONE 'UTC')::date)
