-- add_windows: add to the windows that users opened last; one that ends later was opened later, and starts over.
-- $1 uuid[] users   $2 text[] features   $3 int[] seconds   $4 timestamptz[] ends   $5 bigint[] units
INSERT INTO usage_windows AS w (user_id, feature, seconds, ends_at, used)
SELECT * FROM unnest($1::uuid[], $2::text[], $3::int[], $4::timestamptz[], $5::bigint[])
ORDER BY 1, 2, 3
ON CONFLICT (user_id, feature, seconds) DO UPDATE
SET used = CASE WHEN excluded.ends_at > w.ends_at THEN excluded.used
                WHEN excluded.ends_at = w.ends_at THEN w.used + excluded.used ELSE w.used END,
    ends_at = greatest(w.ends_at, excluded.ends_at)
