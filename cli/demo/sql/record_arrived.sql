-- record_arrived: whether a record is in usage_logs.
-- $1 uuid user   $2 text key
SELECT EXISTS (SELECT FROM usage_logs WHERE user_id = $1 AND key = $2)
