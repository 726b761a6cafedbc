-- add_refund: units of a usage record taken back, and the credits due and given back for them; the user's
-- days and months are to be made anew (service.rollups).
-- $1 uuid user   $2 uuid id   $3 text refund id   $4 uuid usage   $5 text key   $6 bigint units   $7 bigint due
-- $8 bigint given back   $9 timestamptz
WITH stale AS (INSERT INTO stale_rollups (user_id) VALUES ($1))
INSERT INTO usage_refunds (user_id, id, refund_id, usage_id, key, amount, credits_micro, applied_micro, at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
