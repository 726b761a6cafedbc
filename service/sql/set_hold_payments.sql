-- set_hold_payments: who pays for open holds of one user now.
-- $1 uuid user   $2 text[] keys   $3 text[] payments, as JSON
UPDATE holds h SET payments = u.payments::jsonb
FROM unnest($2::text[], $3::text[]) AS u(key, payments)
WHERE h.user_id = $1 AND h.key = u.key AND h.status = 'open'
