-- fold_restage: sum up all that users ever did, less what was refunded, into `folded` and `folded_sessions`.
-- $1 uuid[] users
WITH logs AS MATERIALIZED (
    SELECT l.user_id, l.id, l.action, l.format, l.quality, l.created_at, l.key, l.line,
           l.amount - coalesce(r.amount, 0) AS amount,
           l.credits_consumed - coalesce(r.applied_micro, 0) / 1000000.0 AS credits,
           coalesce(r.amount, 0) = 0 OR r.amount < l.amount AS is_use
    FROM usage_logs l
    LEFT JOIN (
        SELECT user_id, usage_id, sum(amount) AS amount, sum(applied_micro) AS applied_micro
        FROM usage_refunds WHERE user_id = ANY ($1::uuid[]) GROUP BY user_id, usage_id
    ) r ON r.user_id = l.user_id AND r.usage_id = l.id
    WHERE l.user_id = ANY ($1::uuid[])
), zones AS MATERIALIZED (
    SELECT id AS user_id, usage_zone(timezone) AS zone
    FROM users
    WHERE id = ANY ($1::uuid[])
), timed AS (
    SELECT l.user_id, min(l.created_at) AS created_at,
           coalesce(sum(l.amount) FILTER (WHERE l.action = 'completed_sessions'),
                    sum(l.amount) FILTER (WHERE l.action = 'conversations')) AS sessions,
           sum(l.amount) FILTER (WHERE l.action = 'seconds') AS seconds
    FROM (SELECT DISTINCT user_id, key FROM logs WHERE line > 0) record
    JOIN logs l ON l.user_id = record.user_id AND coalesce(l.key, l.id::text) = record.key
    GROUP BY l.user_id, record.key
), sessions AS (
    INSERT INTO folded_sessions
    SELECT t.user_id, date_trunc('month', t.created_at AT TIME ZONE coalesce(z.zone, 'UTC'))::date,
           sum(t.sessions), sum(t.seconds), max(round(t.seconds / t.sessions))
    FROM timed t
    LEFT JOIN zones z USING (user_id)
    WHERE t.sessions > 0 AND t.seconds > 0
    GROUP BY 1, 2
)
INSERT INTO folded
SELECT l.user_id, l.action, coalesce(l.format, ''), coalesce(l.quality, ''),
       (l.created_at AT TIME ZONE 'UTC')::date, (l.created_at AT TIME ZONE coalesce(z.zone, 'UTC'))::date,
       count(*) FILTER (WHERE l.is_use), sum(l.amount), sum(l.credits),
       min(l.created_at) FILTER (WHERE l.is_use), max(l.created_at) FILTER (WHERE l.is_use)
FROM logs l
LEFT JOIN zones z USING (user_id)
GROUP BY 1, 2, 3, 4, 5, 6
