-- add_allowance: the row of a tier's allowance, from the first time that something happens to it.
-- $1 uuid user   $2 uuid id   $3 timestamptz effective at   $4 timestamptz created at   $5 bigint amount
-- $6 bigint micro-credits left   $7 text every   $8 bigint micro-credits used beyond the amount
-- $9 timestamptz renewed at   $10 timestamptz when it took the last change of the tier's, or null
INSERT INTO credit_grants (user_id, id, effective_at, created_at, amount_micro, left_micro, every, overused_micro, renewed_at,
                           changed_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
