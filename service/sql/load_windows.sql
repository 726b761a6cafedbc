-- load_windows: the windows that these users opened last.
-- $1 uuid[]: users
SELECT user_id, feature, seconds, floor(extract(epoch FROM ends_at) * 1000)::bigint AS end_ms, used
FROM usage_windows
WHERE user_id = ANY ($1::uuid[])
