-- credits: what became of all the credits that users ever had, in micro-credits; a row for each, also without any.
-- $1 uuid[] users   $2 timestamptz: of now; what is left of a grant that is over has expired
-- granted = burnt + left + held + expired + voided - overage (DESIGN 5)
-- burns and refunds are the two parts of burnt; owed is what overage comes to by entries and open holds.
SELECT u.user_id,
       coalesce(e.granted, 0) AS granted, coalesce(e.burns - e.refunds, 0) AS burnt,
       coalesce(g.remaining, 0) AS left, coalesce(h.held, 0) AS held,
       coalesce(e.lapsed, 0) + coalesce(g.expired, 0) AS expired, coalesce(e.voided, 0) AS voided,
       coalesce(users.overage_micro, 0) AS overage,
       coalesce(e.burns, 0) AS burns, coalesce(e.refunds, 0) AS refunds,
       coalesce(e.owed, 0) + coalesce(h.owed, 0) AS owed
FROM unnest($1::uuid[]) AS u(user_id)
LEFT JOIN users ON users.id = u.user_id
LEFT JOIN (
    SELECT user_id,
           coalesce(sum(amount_micro) FILTER (WHERE kind IN ('granted', 'renewed', 'forgiven')), 0)::bigint AS granted,
           coalesce(sum(amount_micro) FILTER (WHERE kind = 'burn'), 0)::bigint AS burns,
           coalesce(sum(amount_micro) FILTER (WHERE kind = 'refund'), 0)::bigint AS refunds,
           coalesce(sum(amount_micro) FILTER (WHERE kind = 'lapsed'), 0)::bigint AS lapsed,
           coalesce(sum(amount_micro) FILTER (WHERE kind = 'voided'), 0)::bigint AS voided,
           coalesce(sum(CASE WHEN kind IN ('repaid', 'forgiven') THEN -amount_micro
                             WHEN grant_id IS NULL AND kind IN ('burn', 'lapsed') THEN amount_micro
                             WHEN grant_id IS NULL AND kind = 'refund' THEN -amount_micro END), 0)::bigint AS owed
    FROM credit_entries WHERE user_id = ANY ($1::uuid[]) GROUP BY user_id
) e ON e.user_id = u.user_id
LEFT JOIN (
    SELECT user_id,
           coalesce(sum(left_micro) FILTER (WHERE coalesce(least(expires_at, voided_at) > $2, true)), 0)::bigint AS remaining,
           coalesce(sum(left_micro) FILTER (WHERE least(expires_at, voided_at) <= $2), 0)::bigint AS expired
    FROM credit_grants WHERE user_id = ANY ($1::uuid[]) GROUP BY user_id
) g ON g.user_id = u.user_id
LEFT JOIN (
    SELECT user_id, sum((payment ->> 1)::bigint)::bigint AS held,
           coalesce(sum((payment ->> 1)::bigint) FILTER (WHERE payment ->> 0 IS NULL), 0)::bigint AS owed
    FROM holds CROSS JOIN jsonb_array_elements(payments) AS payment
    WHERE user_id = ANY ($1::uuid[]) AND status = 'open' GROUP BY user_id
) h ON h.user_id = u.user_id
