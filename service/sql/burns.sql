-- burns: who paid for a usage record, in the order in which they paid; no grant is overage.
-- $1 uuid user   $2 uuid usage
SELECT grant_id, amount_micro FROM credit_entries
WHERE user_id = $1 AND id = $2 AND kind = 'burn'
ORDER BY place
