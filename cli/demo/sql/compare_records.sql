-- compare_records: the ledger against usage_logs, record by record.
-- missing: admitted, not logged   altered: logged with other values   repeated: logged once more
-- strange: logged, but nobody was told that it is admitted
WITH counted AS (
    SELECT user_id, key, line, count(*) AS times, min(feature) AS feature, min(amount) AS amount, min(cost_micro) AS cost_micro
    FROM demo_logged
    GROUP BY user_id, key, line
)
SELECT count(*) FILTER (WHERE c.user_id IS NULL) AS missing,
       count(*) FILTER (WHERE c.feature <> d.feature OR c.amount <> d.amount OR c.cost_micro <> d.cost_micro) AS altered,
       coalesce(sum(c.times - 1) FILTER (WHERE d.user_id IS NOT NULL), 0)::bigint AS repeated,
       coalesce(sum(c.times) FILTER (WHERE d.user_id IS NULL), 0)::bigint AS strange
FROM demo_ledger d
FULL JOIN counted c USING (user_id, key, line)
