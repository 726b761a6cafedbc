-- add_entries: who paid for what; no grant means overage.
-- $1 uuid[] users   $2 uuid[] grants   $3 uuid[] usage ids   $4 text[] kinds   $5 bigint[] micro-credits   $6 timestamptz[]
INSERT INTO credit_entries (user_id, grant_id, usage_id, kind, amount_micro, created_at)
SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::text[], $5::bigint[], $6::timestamptz[])
