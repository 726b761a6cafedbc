-- verify_set_overages: what users should owe; where no instant of it is known, as of now.
-- $1 uuid[] users   $2 bigint[] micro-credits
UPDATE users SET overage_micro = u.overage_micro, overage_at = coalesce(overage_at, now())
FROM (SELECT * FROM unnest($1::uuid[], $2::bigint[]) AS u(id, overage_micro) ORDER BY 1) u
WHERE users.id = u.id
