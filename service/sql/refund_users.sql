-- refund_users: who has a record with this key; two are enough to know that it is not clear.
-- $1 text key   $2 uuid: the key as an id, or null
SELECT DISTINCT user_id FROM usage_logs WHERE key = $1 OR id = $2 LIMIT 2
