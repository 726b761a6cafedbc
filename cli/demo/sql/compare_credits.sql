-- compare_credits: micro-credits of everybody.
-- unbalanced: by how much granted = burnt + left - overage is missed, user by user
-- misburnt: burns against what the callers were told that it costs   misowed: users' overage against their entries
WITH told AS (
    SELECT user_id, sum(coalesce(d.cost_micro, g.cost_micro, 0)) AS micro
    FROM demo_ledger d
    LEFT JOIN demo_logged g USING (user_id, key, line)
    GROUP BY user_id
), given AS (
    SELECT user_id, sum(amount_micro) AS granted, sum(left_micro) AS remaining FROM credit_grants GROUP BY user_id
), entered AS (
    SELECT user_id,
           sum(amount_micro) FILTER (WHERE kind = 'burn') AS burnt,
           coalesce(sum(amount_micro) FILTER (WHERE kind = 'burn' AND grant_id IS NULL), 0)
               - coalesce(sum(amount_micro) FILTER (WHERE kind = 'repaid'), 0) AS owed
    FROM credit_entries
    GROUP BY user_id
), account AS (
    SELECT coalesce(g.granted, 0) AS granted, coalesce(g.remaining, 0) AS remaining, coalesce(e.burnt, 0) AS burnt,
           coalesce(e.owed, 0) AS owed, u.overage_micro AS overage, coalesce(t.micro, 0) AS told
    FROM users u
    LEFT JOIN given g ON g.user_id = u.id
    LEFT JOIN entered e ON e.user_id = u.id
    LEFT JOIN told t ON t.user_id = u.id
)
SELECT coalesce(sum(granted), 0)::bigint AS granted,
       coalesce(sum(burnt), 0)::bigint AS burnt,
       coalesce(sum(remaining), 0)::bigint AS remaining,
       coalesce(sum(overage), 0)::bigint AS overage,
       coalesce(sum(abs(granted - burnt - remaining + overage)), 0)::bigint AS unbalanced,
       coalesce(sum(abs(burnt - told)), 0)::bigint AS misburnt,
       coalesce(sum(abs(overage - owed)), 0)::bigint AS misowed
FROM account
