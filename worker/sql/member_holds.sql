-- member_holds: the open holds of these users, in the order of their reserves.
-- $1 uuid[]: users
SELECT user_id, key, id, feature, amount, cost_micro, price, record::text, payments::text, windows::text,
       floor(extract(epoch FROM reserved_at) * 1000)::bigint AS reserved_ms,
       floor(extract(epoch FROM expires_at) * 1000)::bigint AS expires_ms
FROM holds
WHERE user_id = ANY ($1::uuid[]) AND status = 'open'
ORDER BY reserved_at, id
