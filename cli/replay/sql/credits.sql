-- credits: what became of all the credits that a user ever had, in micro-credits.
-- $1 uuid user   $2 timestamptz: of now; what is left of a grant that is over has expired
SELECT e.granted, e.burnt, g.left, h.held, e.lapsed + g.expired AS expired, e.voided,
       coalesce((SELECT overage_micro FROM users WHERE id = $1), 0) AS overage
FROM (
    SELECT coalesce(sum(amount_micro) FILTER (WHERE kind IN ('granted', 'renewed', 'forgiven')), 0)::bigint AS granted,
           coalesce(sum(CASE kind WHEN 'burn' THEN amount_micro WHEN 'refund' THEN -amount_micro END), 0)::bigint AS burnt,
           coalesce(sum(amount_micro) FILTER (WHERE kind = 'lapsed'), 0)::bigint AS lapsed,
           coalesce(sum(amount_micro) FILTER (WHERE kind = 'voided'), 0)::bigint AS voided
    FROM credit_entries WHERE user_id = $1
) e, (
    SELECT coalesce(sum(left_micro) FILTER (WHERE coalesce(least(expires_at, voided_at) > $2, true)), 0)::bigint AS left,
           coalesce(sum(left_micro) FILTER (WHERE least(expires_at, voided_at) <= $2), 0)::bigint AS expired
    FROM credit_grants WHERE user_id = $1
) g, (
    SELECT coalesce(sum((payment ->> 1)::bigint), 0)::bigint AS held
    FROM holds CROSS JOIN jsonb_array_elements(payments) AS payment
    WHERE user_id = $1 AND status = 'open'
) h
