-- verify_subscriptions: what users that have stretches on tiers have of them, one row each.
-- $1 uuid[]: users
-- running: the tiers of those that run, of which there is to be one
-- gaps: how many do not begin when the one before ended
SELECT user_id, coalesce(array_agg(tier) FILTER (WHERE status = 'active'), '{}') AS running,
       count(*) FILTER (WHERE started_at <> before)::int AS gaps
FROM (
    SELECT user_id, tier, status, started_at,
           lag(ended_at) OVER (PARTITION BY user_id ORDER BY started_at, ended_at NULLS LAST, id) AS before
    FROM subscriptions
    WHERE user_id = ANY ($1::uuid[])
) s
GROUP BY user_id
