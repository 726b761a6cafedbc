-- set_grants_renewed: grants that were set back, or are of another amount from now on.
-- $1 uuid[] users   $2 uuid[] grants   $3 bigint[] micro-credits left   $4 bigint[] amounts   $5 text[] how often
-- $6 timestamptz[] since when   $7 bigint[] micro-credits used beyond the amount
-- $8 timestamptz[] when it took the last change of the tier's, or null
UPDATE credit_grants g
SET left_micro = u.left_micro, amount_micro = u.amount_micro, every = u.every, renewed_at = u.renewed_at,
    overused_micro = u.overused_micro, changed_at = u.changed_at
FROM (SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::bigint[], $5::text[], $6::timestamptz[],
                           $7::bigint[], $8::timestamptz[])
                    AS u(user_id, id, left_micro, amount_micro, every, renewed_at, overused_micro, changed_at)
      ORDER BY 1, 2) u
WHERE g.user_id = u.user_id AND g.id = u.id
