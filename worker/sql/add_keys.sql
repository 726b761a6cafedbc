-- add_keys: remember keys that the callers chose, for ever.
-- $1 uuid[] users   $2 uuid[] marks   $3 uuid[] usage ids   $4 timestamptz[] instants
INSERT INTO usage_keys (user_id, mark, usage_id, created_at)
SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::timestamptz[]) AS k(user_id, mark, usage_id, created_at)
ORDER BY 1, 2
