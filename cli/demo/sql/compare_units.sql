-- compare_units: units by user and feature, in the ledger against what is counted in two tables.
-- usage_*: feature_usage   counter_*: usage_counters, ever   short: units too few   beyond: units too many
WITH expected AS (
    SELECT user_id, feature, sum(amount) AS units FROM demo_ledger GROUP BY user_id, feature
), usage AS (
    SELECT coalesce(f.usage_count, 0) - coalesce(e.units, 0) AS off
    FROM expected e
    FULL JOIN feature_usage f ON f.user_id = e.user_id AND f.feature_name = e.feature
), counter AS (
    SELECT coalesce(c.lifetime_used, 0) - coalesce(e.units, 0) AS off
    FROM expected e
    FULL JOIN usage_counters c ON c.user_id = e.user_id AND c.feature = e.feature
)
SELECT (SELECT coalesce(sum(-off) FILTER (WHERE off < 0), 0)::bigint FROM usage) AS usage_short,
       (SELECT coalesce(sum(off) FILTER (WHERE off > 0), 0)::bigint FROM usage) AS usage_beyond,
       (SELECT coalesce(sum(-off) FILTER (WHERE off < 0), 0)::bigint FROM counter) AS counter_short,
       (SELECT coalesce(sum(off) FILTER (WHERE off > 0), 0)::bigint FROM counter) AS counter_beyond
