-- make_logged: usage_logs under the names of the ledger; a key that is a UUIDv7 is the row's id.
CREATE TEMPORARY TABLE demo_logged ON COMMIT DROP AS
SELECT user_id, coalesce(key, id::text) AS key, line, id, action AS feature, amount,
       (credits_consumed * 1000000)::bigint AS cost_micro, created_at
FROM usage_logs
