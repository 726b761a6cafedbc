-- add_feature_usage: add to what each user ever used of each feature; the last use only moves forward.
-- $1 uuid[] users   $2 text[] features   $3 bigint[] units   $4 timestamptz[] last use   $5 text[] metadata of it, as JSON
INSERT INTO feature_usage AS f (user_id, feature_name, usage_count, last_used, metadata)
SELECT u.user_id, u.feature, u.units, u.last_used, u.metadata::jsonb
FROM unnest($1::uuid[], $2::text[], $3::bigint[], $4::timestamptz[], $5::text[])
     AS u(user_id, feature, units, last_used, metadata)
ORDER BY u.user_id, u.feature
ON CONFLICT (user_id, feature_name) DO UPDATE
SET usage_count = coalesce(f.usage_count, 0) + excluded.usage_count,  -- seed 000 has no NOT NULL
    last_used = greatest(f.last_used, excluded.last_used),
    metadata = CASE WHEN excluded.last_used >= f.last_used THEN coalesce(excluded.metadata, f.metadata) ELSE f.metadata END
