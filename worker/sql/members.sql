-- members: what applying needs of the users in a run.
-- $1 uuid[]: users
-- overage_at_ms: when overage last grew, 0 without any. Grants that were active by then have nothing left to repay it
-- with, or were over. The newest entry of such a user is overage or its repayment, so the search is short.
SELECT u.id, u.timezone, floor(extract(epoch FROM u.anchor) * 1000)::bigint AS anchor_ms, u.cycle_months, u.overage_micro,
       coalesce(CASE WHEN u.overage_micro > 0 THEN (
           SELECT floor(extract(epoch FROM e.created_at) * 1000)::bigint
           FROM credit_entries e WHERE e.user_id = u.id AND e.grant_id IS NULL ORDER BY e.id DESC LIMIT 1
       ) END, 0) AS overage_at_ms
FROM users u
WHERE u.id = ANY ($1::uuid[])
