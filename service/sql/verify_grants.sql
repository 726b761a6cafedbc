-- verify_grants: what is left of each grant of these users, as it is stored and by entries and open holds.
-- $1 uuid[] users
-- granted_micro: by its entries of that kind   counted_micro: what should be left
-- A grant that has entries and is gone has nothing else: null for the rest.
SELECT user_id, id, coalesce(g.name, id::text) AS name, g.amount_micro, g.left_micro,
       g.voided_at IS NOT NULL AS voided, coalesce(e.granted, 0)::bigint AS granted_micro,
       (coalesce(e.remaining, 0) - coalesce(h.held, 0))::bigint AS counted_micro
FROM (SELECT * FROM credit_grants WHERE user_id = ANY ($1::uuid[])) g
FULL JOIN (
    SELECT user_id, grant_id AS id, sum(amount_micro) FILTER (WHERE kind = 'granted') AS granted,
           sum(CASE WHEN kind IN ('granted', 'renewed', 'refund') THEN amount_micro ELSE -amount_micro END) AS remaining
    FROM credit_entries WHERE user_id = ANY ($1::uuid[]) AND grant_id IS NOT NULL GROUP BY user_id, grant_id
) e USING (user_id, id)
LEFT JOIN (
    SELECT user_id, (payment ->> 0)::uuid AS id, sum((payment ->> 1)::bigint) AS held
    FROM holds CROSS JOIN jsonb_array_elements(payments) AS payment
    WHERE user_id = ANY ($1::uuid[]) AND status = 'open' AND payment ->> 0 IS NOT NULL
    GROUP BY user_id, payment ->> 0
) h USING (user_id, id)
