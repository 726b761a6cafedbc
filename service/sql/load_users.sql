-- load_users: what the decisions about these users need, one row each.
-- $1 uuid[]: users
SELECT id, tier, timezone, (extract(epoch FROM anchor) * 1000)::bigint AS anchor_ms, cycle_months, overage_micro
FROM users
WHERE id = ANY ($1::uuid[])
