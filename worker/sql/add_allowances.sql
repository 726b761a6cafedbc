-- add_allowances: the rows of tiers' allowances that may pay for the first time.
-- $1 uuid[] users   $2 uuid[] ids   $3 bigint[] amounts   $4 bigint[] left, micro-credits
-- $5 timestamptz[] effective   $6 timestamptz[] made   $7 timestamptz[] renewed   $8 text[] how often
-- $9 bigint[] micro-credits used beyond the amount   $10 timestamptz[] when it took the last change of the tier's, or null
INSERT INTO credit_grants (user_id, id, amount_micro, left_micro, effective_at, created_at, renewed_at, every, overused_micro,
                           changed_at)
SELECT user_id, id, amount_micro, left_micro, effective_at, created_at, renewed_at, every, overused_micro, changed_at
FROM unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::bigint[], $5::timestamptz[], $6::timestamptz[], $7::timestamptz[],
            $8::text[], $9::bigint[], $10::timestamptz[])
     AS g(user_id, id, amount_micro, left_micro, effective_at, created_at, renewed_at, every, overused_micro, changed_at)
ORDER BY 1, 2
