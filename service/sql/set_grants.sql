-- set_grants: what became of grants of one user.
-- $1 uuid user   $2 uuid[] ids   $3 bigint[] amounts   $4 bigint[] micro-credits left   $5 text[] every
-- $6 bigint[] micro-credits used beyond the amount   $7 timestamptz[] renewed at   $8 timestamptz[] changed at
-- $9 timestamptz[] voided at
UPDATE credit_grants g
SET amount_micro = u.amount_micro, left_micro = u.left_micro, every = u.every, renewed_at = u.renewed_at,
    changed_at = u.changed_at, voided_at = u.voided_at, overused_micro = u.overused_micro
FROM unnest($2::uuid[], $3::bigint[], $4::bigint[], $5::text[], $6::bigint[], $7::timestamptz[], $8::timestamptz[],
            $9::timestamptz[])
     AS u(id, amount_micro, left_micro, every, overused_micro, renewed_at, changed_at, voided_at)
WHERE g.user_id = $1 AND g.id = u.id
