-- legacy_names: functions and views that have names of ours from seed 004, and that 0006 puts aside.
-- $1 bool: whether they are ours already
SELECT 'function' AS kind, p.oid::regprocedure::text AS name FROM pg_proc p
WHERE NOT $1 AND p.pronamespace = to_regnamespace(quote_ident(current_schema()))
  AND p.proname IN ('increment_feature_usage', 'get_current_usage_stats', 'update_feature_usage_timestamp')
UNION ALL
SELECT 'view', c.relname FROM pg_class c
WHERE NOT $1 AND c.relnamespace = to_regnamespace(quote_ident(current_schema())) AND c.relkind IN ('v', 'm')
  AND c.relname IN ('usage_alerts_view', 'feature_events')
ORDER BY 1, 2
