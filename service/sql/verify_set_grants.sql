-- verify_set_grants: what should be left of grants.
-- $1 uuid[] users   $2 uuid[] grants   $3 bigint[] micro-credits
UPDATE credit_grants g SET left_micro = u.left_micro
FROM (SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::bigint[]) AS u(user_id, id, left_micro) ORDER BY 1, 2) u
WHERE g.user_id = u.user_id AND g.id = u.id
