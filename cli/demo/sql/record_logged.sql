-- record_logged: the row of usage_logs that seeds 001 and 003 show.
-- $1 uuid user   $2 text feature
SELECT *, (credits_consumed * 1000000)::bigint AS micro FROM usage_logs WHERE user_id = $1 AND action = $2
