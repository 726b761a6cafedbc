-- hold_end: how a hold stands.
-- $1 uuid user   $2 text key
SELECT status, coalesce(committed_amount, 0) AS amount, coalesce(committed_micro, 0) AS cost_micro
FROM holds
WHERE user_id = $1 AND key = $2
