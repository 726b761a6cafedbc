-- add_allowances: the rows of tiers' allowances that may pay for the first time.
-- $1 uuid[] users   $2 uuid[] ids   $3 bigint[] amounts   $4 bigint[] left, micro-credits
-- $5 timestamptz[] effective   $6 timestamptz[] made   $7 timestamptz[] renewed   $8 text[] how often
INSERT INTO credit_grants (user_id, id, amount_micro, left_micro, effective_at, created_at, renewed_at, every)
SELECT user_id, id, amount_micro, left_micro, effective_at, created_at, renewed_at, every
FROM unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::bigint[], $5::timestamptz[], $6::timestamptz[], $7::timestamptz[],
            $8::text[])
     AS g(user_id, id, amount_micro, left_micro, effective_at, created_at, renewed_at, every)
ORDER BY 1, 2
