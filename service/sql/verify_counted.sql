-- verify_counted: units that count in windows of features, and whether some count in a later window.
-- $1 uuid[] users: all of the windows' users, once
-- of each window:   $2 uuid[]: its user   $3 text[]: its feature   $4 timestamptz[]: start of the window before it
-- $5 timestamptz[]: its start   $6 timestamptz[]: its end   $7 timestamptz[]: end of the window after it
-- $8 interval: grace
-- place: which window, from 1; none, if nothing counts in it nor later
-- The rule is that of count_windows, which asks by index for few windows; this reads the log of its users once.
SELECT w.place, coalesce(sum(l.units) FILTER (WHERE c.counted), 0)::bigint AS units, bool_or(NOT c.counted) AS later
FROM unnest($2::uuid[], $3::text[], $4::timestamptz[], $5::timestamptz[], $6::timestamptz[], $7::timestamptz[])
     WITH ORDINALITY AS w(user_id, feature, before_start, starts_at, ends_at, next_end, place)
JOIN (
    SELECT u.user_id, u.action AS feature, u.created_at, u.arrived_at, u.amount - coalesce(r.amount, 0) AS units
    FROM usage_logs u
    LEFT JOIN (
        SELECT user_id, usage_id, sum(amount) AS amount
        FROM usage_refunds WHERE user_id = ANY ($1::uuid[]) GROUP BY user_id, usage_id
    ) r ON r.user_id = u.user_id AND r.usage_id = u.id
    WHERE u.user_id = ANY ($1::uuid[])
) l ON l.user_id = w.user_id AND l.feature = w.feature
CROSS JOIN LATERAL (
    SELECT CASE
        WHEN l.arrived_at IS NULL THEN l.created_at >= w.starts_at AND l.created_at < w.ends_at
        WHEN l.arrived_at < w.starts_at THEN false
        WHEN l.arrived_at < w.ends_at THEN
            NOT (l.created_at >= w.before_start AND l.created_at < w.starts_at AND l.arrived_at < w.starts_at + $8::interval)
        ELSE l.arrived_at < w.next_end AND l.arrived_at < w.ends_at + $8::interval
            AND l.created_at >= w.starts_at AND l.created_at < w.ends_at
        END AS counted
) c
WHERE c.counted OR coalesce(l.arrived_at, l.created_at) >= w.ends_at
GROUP BY w.place
