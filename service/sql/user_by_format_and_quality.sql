-- user_by_format_and_quality (seed 003): what a user asked for in the last days, where both were said.
-- $1 uuid user   $2 int days before the last   $3 date: the last, or null for today, UTC
SELECT format, quality, sum(uses)::bigint AS usage_count, sum(credits) AS total_credits
FROM usage_daily
WHERE user_id = $1 AND day >= coalesce($3::date, (now() AT TIME ZONE 'UTC')::date) - $2::int
  AND day <= coalesce($3::date, (now() AT TIME ZONE 'UTC')::date) AND format <> '' AND quality <> ''
GROUP BY format, quality
ORDER BY total_credits DESC, format, quality
