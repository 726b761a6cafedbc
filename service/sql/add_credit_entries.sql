-- add_credit_entries: movements of one user's credits that are of no usage, each with an id of its own.
-- $1 uuid user   $2 uuid[] ids   $3 uuid[] grants   $4 text[] kinds   $5 bigint[] micro-credits   $6 timestamptz[] instants
INSERT INTO credit_entries (user_id, id, grant_id, kind, amount_micro, created_at)
SELECT $1, u.id, u.grant_id, u.kind, u.amount_micro, u.created_at
FROM unnest($2::uuid[], $3::uuid[], $4::text[], $5::bigint[], $6::timestamptz[])
     AS u(id, grant_id, kind, amount_micro, created_at)
ORDER BY u.id
