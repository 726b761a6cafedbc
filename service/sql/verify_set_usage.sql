-- verify_set_usage: how often users used features; the last use only moves forward.
-- $1 uuid[] users   $2 text[] features   $3 bigint[] units   $4 timestamptz[] last use
INSERT INTO feature_usage AS f (user_id, feature_name, usage_count, last_used)
SELECT * FROM unnest($1::uuid[], $2::text[], $3::bigint[], $4::timestamptz[])
ORDER BY 1, 2
ON CONFLICT (user_id, feature_name) DO UPDATE
SET usage_count = excluded.usage_count,
    last_used = greatest(f.last_used, excluded.last_used)
