-- fold_stage: sum up the rows of runs, into `folded` and `folded_sessions`.
-- $1 bigint[] runs   $2 timestamptz   $3 timestamptz: between which instants those lie that are not named, or null
-- A row is of the run whose row in usage_runs has its xmin, and lies within that run's instants, or is named by it.
WITH runs AS MATERIALIZED (
    SELECT xmin AS run, first_at, last_at, users, ids, instants FROM usage_runs WHERE id = ANY ($1::bigint[])
), logs AS MATERIALIZED (
    SELECT l.user_id, l.id, l.action, l.format, l.quality, l.amount, l.credits_consumed, l.created_at, l.key, l.line
    FROM usage_logs l
    JOIN runs r ON l.xmin = r.run AND l.created_at BETWEEN r.first_at AND r.last_at
    WHERE l.created_at BETWEEN $2 AND $3
    UNION ALL
    SELECT l.user_id, l.id, l.action, l.format, l.quality, l.amount, l.credits_consumed, l.created_at, l.key, l.line
    FROM runs r
    CROSS JOIN LATERAL unnest(r.users, r.ids, r.instants) AS named(user_id, id, created_at)
    CROSS JOIN LATERAL (
        SELECT * FROM usage_logs l
        WHERE l.id = named.id AND l.user_id = named.user_id AND l.created_at = named.created_at
        OFFSET 0
    ) l
), zones AS MATERIALIZED (
    SELECT id AS user_id, usage_zone(timezone) AS zone
    FROM users
    WHERE id IN (SELECT user_id FROM logs)
), timed AS (
    -- Only a record of several lines says how long a session was; its first line may have its key as its id.
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
       count(*), sum(l.amount), sum(l.credits_consumed), min(l.created_at), max(l.created_at)
FROM logs l
LEFT JOIN zones z USING (user_id)
GROUP BY 1, 2, 3, 4, 5, 6
