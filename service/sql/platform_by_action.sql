-- platform_by_action (seed 003): what everybody did in the last days, by action.
-- $1 int days before the last   $2 date: the last, or null for today, UTC
-- Users are exact while that is the last day: who did an action last since the first day did it since then.
WITH asked AS MATERIALIZED (
    SELECT coalesce($2::date, (now() AT TIME ZONE 'UTC')::date) - $1::int AS first_day,
           coalesce($2::date, (now() AT TIME ZONE 'UTC')::date) AS last_day
), users AS (
    SELECT action, sum(users)::bigint AS users
    FROM usage_users_by_last_day WHERE last_day >= (SELECT first_day FROM asked)
    GROUP BY action
)
SELECT d.action, sum(d.uses)::bigint AS total_actions, coalesce(max(u.users), 0)::bigint AS unique_users,
       sum(d.credits) AS total_credits, round(sum(d.credits) / nullif(sum(d.uses), 0), 6) AS avg_credits
FROM usage_daily_actions d
LEFT JOIN users u USING (action)
WHERE d.day BETWEEN (SELECT first_day FROM asked) AND (SELECT last_day FROM asked)
GROUP BY d.action
HAVING sum(d.uses) > 0
ORDER BY total_credits DESC, d.action
