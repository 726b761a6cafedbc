-- load_holds: the open holds of these users, in the order of their reserves.
-- $1 uuid[]: users
SELECT user_id, key, feature, amount, cost_micro, price, payments::text, windows::text, reserved_at, expires_at
FROM holds
WHERE user_id = ANY ($1::uuid[]) AND status = 'open'
ORDER BY reserved_at, id
