-- repayers: the grants that repaid overage since an instant, newest first, each with how much of what it ever
-- paid it has not got back. A grant must not get back more than it paid, whatever overage was repaid by whom;
-- a recurring one nothing of before it was set back.
-- $1 uuid user   $2 timestamptz   $3 uuid[] recurring grants   $4 timestamptz[] when each was set back last
SELECT grant_id,
       least(sum(amount_micro) FILTER (WHERE kind = 'repaid' AND created_at >= greatest($2, renewed_at)),
             sum(CASE kind WHEN 'refund' THEN -amount_micro ELSE amount_micro END))::bigint AS amount_micro
FROM credit_entries
LEFT JOIN unnest($3::uuid[], $4::timestamptz[]) AS recurring(grant_id, renewed_at) USING (grant_id)
WHERE user_id = $1 AND grant_id IS NOT NULL AND kind IN ('burn', 'repaid', 'refund')
GROUP BY grant_id
HAVING sum(amount_micro) FILTER (WHERE kind = 'repaid' AND created_at >= greatest($2, renewed_at)) > 0
ORDER BY max(created_at) FILTER (WHERE kind = 'repaid') DESC, grant_id
