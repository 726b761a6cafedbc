-- set_overages: what users burnt past their last grant, and when that was last set.
-- $1 uuid[] users   $2 bigint[] micro-credits   $3 timestamptz[] instants
UPDATE users SET overage_micro = u.overage_micro, overage_at = u.overage_at
FROM (SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::timestamptz[]) AS u(id, overage_micro, overage_at) ORDER BY 1) u
WHERE users.id = u.id
