-- add_windows: add to the windows that users opened last.  A row for each of them; of several, one run after the other.
-- $1 uuid[] users   $2 text[] features   $3 int[] seconds   $4 timestamptz[] ends   $5 bigint[] units; below 0 they come back
-- One that begins when the other is over replaces it, one that is over before the other began is past.  Two that overlap
-- are one, which ends first: Redis opened one, and count_usage the other.  What comes back is of the window that it was
-- counted in, if that has not been replaced.   Rule   service.opened.add_opened; change both or neither.
INSERT INTO usage_windows AS w (user_id, feature, seconds, ends_at, used)
SELECT * FROM unnest($1::uuid[], $2::text[], $3::int[], $4::timestamptz[], $5::bigint[])
ORDER BY 1, 2, 3
ON CONFLICT (user_id, feature, seconds) DO UPDATE
SET used = CASE
        WHEN excluded.used < 0 THEN
            CASE WHEN w.ends_at > excluded.ends_at - make_interval(secs => w.seconds) AND w.ends_at <= excluded.ends_at
                 THEN greatest(0, w.used + excluded.used) ELSE w.used END
        WHEN w.ends_at <= excluded.ends_at - make_interval(secs => w.seconds) THEN excluded.used
        WHEN excluded.ends_at <= w.ends_at - make_interval(secs => w.seconds) THEN w.used
        ELSE w.used + excluded.used
    END,
    ends_at = CASE
        WHEN excluded.used < 0 THEN w.ends_at
        WHEN w.ends_at <= excluded.ends_at - make_interval(secs => w.seconds) THEN excluded.ends_at
        WHEN excluded.ends_at <= w.ends_at - make_interval(secs => w.seconds) THEN w.ends_at
        ELSE least(w.ends_at, excluded.ends_at)
    END
