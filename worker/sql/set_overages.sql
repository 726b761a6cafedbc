-- set_overages: what users burnt past their last grant.
-- $1 uuid[] users   $2 bigint[] micro-credits
UPDATE users SET overage_micro = u.overage_micro
FROM (SELECT * FROM unnest($1::uuid[], $2::bigint[]) AS u(id, overage_micro) ORDER BY 1) u
WHERE users.id = u.id
