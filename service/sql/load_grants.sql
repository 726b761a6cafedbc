-- load_grants: every grant of these users; one that is over still shows in a balance.
-- $1 uuid[]: users
SELECT user_id, id, name, amount_micro, left_micro, priority, kind,
       floor(extract(epoch FROM effective_at) * 1000)::bigint AS effective_at_ms,
       floor(extract(epoch FROM expires_at) * 1000)::bigint AS expires_at_ms,
       floor(extract(epoch FROM voided_at) * 1000)::bigint AS voided_at_ms,
       floor(extract(epoch FROM created_at) * 1000)::bigint AS created_at_ms,
       every, floor(extract(epoch FROM renewed_at) * 1000)::bigint AS renewed_at_ms,
       min_rollover_micro, max_rollover_micro, overused_micro,
       floor(extract(epoch FROM changed_at) * 1000)::bigint AS changed_at_ms
FROM credit_grants
WHERE user_id = ANY ($1::uuid[])
