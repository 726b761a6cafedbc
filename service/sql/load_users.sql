-- load_users: what the decisions about these users need, one row each.
-- $1 uuid[]: users
-- overage_at_ms: when overage was last set, 0 if it never was; what had begun by then does not repay it
SELECT id, tier, timezone, floor(extract(epoch FROM anchor) * 1000)::bigint AS anchor_ms, cycle_months,
       overage_micro, coalesce(floor(extract(epoch FROM overage_at) * 1000)::bigint, 0) AS overage_at_ms
FROM users
WHERE id = ANY ($1::uuid[])
