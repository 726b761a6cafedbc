-- members: what applying needs of the users in a run.
-- $1 uuid[]: users
SELECT id, timezone, (extract(epoch FROM anchor) * 1000)::bigint AS anchor_ms, cycle_months, overage_micro
FROM users
WHERE id = ANY ($1::uuid[])
