-- refund_repeated: the key that a refund of this name was for, and what came of it; no row: there is none.
-- $1 uuid user   $2 text refund id   $3 uuid[] the ids that its rows would have
SELECT (SELECT key FROM usage_refunds WHERE user_id = $1 AND refund_id = $2) AS key,
       count(*) AS rows, coalesce(sum(amount), 0)::bigint AS amount,
       coalesce(sum(credits_micro), 0)::bigint AS due_micro, coalesce(sum(applied_micro), 0)::bigint AS applied_micro
FROM usage_refunds
WHERE user_id = $1 AND id = ANY ($3::uuid[])
