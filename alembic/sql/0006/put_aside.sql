-- put_aside: take functions and views that a legacy database has of the names of seed 004 out of the way.
-- They move to the schema allotment_legacy as they are: a trigger goes on with its function, a view with its view.
DO $put_aside$
DECLARE
    here CONSTANT regnamespace := to_regnamespace(quote_ident(current_schema()));
    found record;
BEGIN
    FOR found IN
        SELECT 'ROUTINE' AS kind, p.oid::regprocedure::text AS name FROM pg_proc p
        WHERE p.pronamespace = here
          AND p.proname IN ('increment_feature_usage', 'get_current_usage_stats', 'update_feature_usage_timestamp')
        UNION ALL
        SELECT CASE c.relkind WHEN 'v' THEN 'VIEW' ELSE 'MATERIALIZED VIEW' END, c.oid::regclass::text FROM pg_class c
        WHERE c.relnamespace = here AND c.relkind IN ('v', 'm') AND c.relname IN ('usage_alerts_view', 'feature_events')
    LOOP
        CREATE SCHEMA IF NOT EXISTS allotment_legacy;
        EXECUTE format('ALTER %s %s SET SCHEMA allotment_legacy', found.kind, found.name);
    END LOOP;
END
$put_aside$
