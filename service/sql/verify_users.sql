-- verify_users: users in the order of their ids, with what their periods and credits depend on.
-- $1 uuid: after this one, or null   $2 uuid[]: only these, or null for all   $3 int: at most so many
SELECT id, coalesce(external_id, id::text) AS name, tier, timezone,
       floor(extract(epoch FROM anchor) * 1000)::bigint AS anchor_ms, cycle_months, overage_micro
FROM users
WHERE ($1::uuid IS NULL OR id > $1) AND ($2::uuid[] IS NULL OR id = ANY ($2))
ORDER BY id
LIMIT $3
