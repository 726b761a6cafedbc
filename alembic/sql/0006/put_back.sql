-- put_back: give functions and views that 0006 has put aside their place again.
DO $put_back$
DECLARE
    found record;
BEGIN
    FOR found IN
        SELECT 'ROUTINE' AS kind, p.oid::regprocedure::text AS name FROM pg_proc p
        WHERE p.pronamespace = to_regnamespace('allotment_legacy')
          AND p.proname IN ('increment_feature_usage', 'get_current_usage_stats', 'update_feature_usage_timestamp')
        UNION ALL
        SELECT CASE c.relkind WHEN 'v' THEN 'VIEW' ELSE 'MATERIALIZED VIEW' END, c.oid::regclass::text FROM pg_class c
        WHERE c.relnamespace = to_regnamespace('allotment_legacy') AND c.relkind IN ('v', 'm')
          AND c.relname IN ('usage_alerts_view', 'feature_events')
    LOOP
        EXECUTE format('ALTER %s %s SET SCHEMA %I', found.kind, found.name, current_schema());
    END LOOP;
    IF NOT EXISTS (SELECT FROM pg_class WHERE relnamespace = to_regnamespace('allotment_legacy'))
       AND NOT EXISTS (SELECT FROM pg_proc WHERE pronamespace = to_regnamespace('allotment_legacy')) THEN
        DROP SCHEMA IF EXISTS allotment_legacy;
    END IF;
END
$put_back$
