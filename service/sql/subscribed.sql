-- subscribed: what users' stretches on tiers come to, one row each: months_subscribed, total_revenue, highest_tier_reached.
-- $1 uuid[]: users   $2 timestamptz: now, or null for when each was counted last
-- months_subscribed: whole months, month ends clamped, of each unbroken time on tiers other than the default of when the
--   stretch began, added up. Counted in days of the user's time zone, each that a stretch has a part of: what ends with a
--   month's last day has all of it, at whatever hour it began, and a gap of a day breaks nothing.
--   Time after a stretch was to end does not count, though it be ended later.
-- highest_tier_reached: tiers rise in the order of tiers.toml, from the default tier on; of one that is gone, the order
--   is that of the last file that had it.
WITH stretch AS (
    SELECT u.id AS user_id, coalesce(s.tier, u.tier) AS tier, coalesce(s.revenue, 0) AS revenue,
           coalesce(s.started_at, u.created_at) AS started_at,
           least(coalesce(s.ended_at, $2, max(s.counted_at) OVER (PARTITION BY u.id), now()), s.ends_at) AS ended_at, s.id, usage_zone(u.timezone) AS zone
    FROM users u
    LEFT JOIN subscriptions s ON s.user_id = u.id
    WHERE u.id = ANY ($1::uuid[])
), placed AS (
    SELECT s.*, s.tier <> coalesce(d.name, '') AS is_subscribed, r.place
    FROM stretch s
    LEFT JOIN LATERAL (
        SELECT t.name FROM tiers t
        WHERE t.is_default
        -- Before the first file there was none: it is taken for the first.
        ORDER BY t.applied_at <= s.started_at DESC,
                 CASE WHEN t.applied_at <= s.started_at THEN -t.version ELSE t.version END
        LIMIT 1
    ) d ON true
    LEFT JOIN LATERAL (
        SELECT CASE WHEN t.is_default THEN -1 ELSE t.position END AS place FROM tiers t
        WHERE t.name = s.tier ORDER BY t.version DESC LIMIT 1
    ) r ON true
), days AS (
    -- From the first day to the one after the last.
    SELECT user_id, (started_at AT TIME ZONE zone)::date AS first,
           (ended_at AT TIME ZONE zone - interval '1 microsecond')::date + 1 AS last
    FROM placed WHERE is_subscribed AND ended_at > started_at
), run AS (
    -- Stretches of one unbroken time have one number.
    SELECT user_id, first, last,
           count(*) FILTER (WHERE begins) OVER (PARTITION BY user_id ORDER BY first, last) AS run
    FROM (
        SELECT user_id, first, last,
               first <= 1 + max(last) OVER (
                   PARTITION BY user_id ORDER BY first, last ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
               ) IS NOT TRUE AS begins
        FROM days
    ) each
), month AS (
    SELECT user_id, sum(months - CASE WHEN first + make_interval(months => months) > last THEN 1 ELSE 0 END) AS months
    FROM (
        SELECT user_id, first, last,
               ((extract(year FROM last) - extract(year FROM first)) * 12
                + extract(month FROM last) - extract(month FROM first))::int AS months
        FROM (SELECT user_id, min(first) AS first, max(last) AS last FROM run GROUP BY user_id, run) bounds
    ) counted
    GROUP BY user_id
)
SELECT p.user_id, coalesce(max(m.months), 0)::int AS months_subscribed,
       least(sum(p.revenue), 99999999.99)::numeric(10, 2) AS total_revenue,
       (array_agg(p.tier ORDER BY p.place DESC NULLS LAST, p.started_at))[1] AS highest_tier_reached
FROM placed p
LEFT JOIN month m USING (user_id)
GROUP BY p.user_id
ORDER BY p.user_id
