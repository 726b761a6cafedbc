-- count_windows: units of every feature that count in these windows, by what the log of usage says.
-- $1 uuid[]: users, and of each a window:   $2 text[]: its period   $3 timestamptz[]: start of the window before it
-- $4 timestamptz[]: its start   $5 timestamptz[]: its end   $6 timestamptz[]: end of the window after it   $7 interval: grace
-- What says when it occurred counts in the window of its arrival, unless it occurred in the one before that
-- and arrived within the grace: service.standing.counted_window.  Open holds are not in the log.
SELECT w.user_id, w.per, l.action AS feature, sum(l.amount - coalesce(r.amount, 0))::bigint AS units
FROM unnest($1::uuid[], $2::text[], $3::timestamptz[], $4::timestamptz[], $5::timestamptz[], $6::timestamptz[])
     AS w (user_id, per, before_start, starts_at, ends_at, next_end)
CROSS JOIN LATERAL (
    SELECT id, action, amount
    FROM usage_logs
    WHERE user_id = w.user_id AND arrived_at IS NULL AND created_at >= w.starts_at AND created_at < w.ends_at
    UNION ALL
    SELECT id, action, amount
    FROM usage_logs
    WHERE user_id = w.user_id AND arrived_at >= w.starts_at
      AND CASE
          WHEN arrived_at < w.ends_at THEN
              NOT (created_at >= w.before_start AND created_at < w.starts_at AND arrived_at < w.starts_at + $7::interval)
          ELSE arrived_at < w.next_end AND arrived_at < w.ends_at + $7::interval
              AND created_at >= w.starts_at AND created_at < w.ends_at
          END
) l
LEFT JOIN LATERAL (
    SELECT sum(amount) AS amount FROM usage_refunds WHERE user_id = w.user_id AND usage_id = l.id
) r ON true
GROUP BY w.user_id, w.per, l.action
