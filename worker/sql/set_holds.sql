-- set_holds: holds that ended, or whose overage others have paid.
-- $1 uuid[] users   $2 text[] keys   $3 text[] payments, as JSON   $4 text[] status
-- $5 bigint[] committed units   $6 bigint[] committed micro-credits   $7 timestamptz[] end
UPDATE holds h
SET payments = u.payments::jsonb, status = u.status, committed_amount = u.committed_amount,
    committed_micro = u.committed_micro, ended_at = u.ended_at
FROM (SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::timestamptz[])
                    AS u(user_id, key, payments, status, committed_amount, committed_micro, ended_at) ORDER BY 1, 2) u
WHERE h.user_id = u.user_id AND h.key = u.key
