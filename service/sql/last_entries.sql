-- last_entries: the last movements of a user's credits, newest first.
-- $1 uuid user   $2 integer how many
-- Ids carry the time of what they belong to, a usage or a change: near enough to read few rows, not to order them.
SELECT e.kind, e.grant_id, g.name, e.amount_micro, floor(extract(epoch FROM e.created_at) * 1000)::bigint AS at_ms
FROM (
    SELECT * FROM credit_entries WHERE user_id = $1 ORDER BY id DESC, place DESC LIMIT 20 * $2
) e
LEFT JOIN credit_grants g ON g.user_id = e.user_id AND g.id = e.grant_id
ORDER BY e.created_at DESC, e.id DESC, e.place DESC
LIMIT $2
