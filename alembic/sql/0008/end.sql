-- end: see that every row was read, and take `user_feature_usage` out of the way.  What a view is made of, an application
-- writes to again: those are its own tables, and the copy of the view is kept.
DO $end$
DECLARE
    here CONSTANT text := current_schema();
    source record;
    taken record;
    beneath record;
    rows bigint;
BEGIN
    IF to_regclass('allotment_legacy.sources') IS NULL THEN
        RETURN;
    END IF;
    IF (SELECT step FROM allotment_legacy.progress) <> 'done' THEN
        RAISE EXCEPTION 'legacy rows are left to be brought over' USING ERRCODE = 'AL001';
    END IF;
    FOR source IN SELECT * FROM allotment_legacy.sources LOOP
        EXECUTE format('SELECT count(*) FROM %s', source.relation) INTO rows;
        -- There are fewer where some were deleted since.
        IF source.rows <> source.brought + source.rejected
           OR source.rows NOT BETWEEN rows AND rows + (SELECT count(*) FROM allotment_legacy.deleted d WHERE d.source = source.name) THEN
            RAISE EXCEPTION '% has % rows, of which % were brought over and % kept aside',
                source.name, rows, source.brought, source.rejected USING ERRCODE = 'AL001';
        END IF;
    END LOOP;
    -- `feature_usage` is one of them.
    FOR beneath IN
        WITH RECURSIVE kept AS (
            SELECT c.oid FROM pg_class c
            WHERE c.relnamespace = to_regnamespace('allotment_legacy')
               OR c.oid = to_regclass(format('%I.user_feature_usage', here))
            UNION
            SELECT i.inhrelid FROM pg_inherits i JOIN kept k ON k.oid = i.inhparent
        )
        SELECT t.tgrelid::regclass AS relation FROM pg_trigger t
        WHERE t.tgname = 'allotment_frozen' AND t.tgparentid = 0 AND t.tgrelid NOT IN (SELECT k.oid FROM kept k)
    LOOP
        EXECUTE format('DROP TRIGGER allotment_frozen ON %s', beneath.relation);
    END LOOP;
    IF to_regclass(format('%I.user_feature_usage', here)) IS NULL THEN
        RETURN;
    END IF;
    INSERT INTO allotment_legacy.put_aside
    SELECT 'user_feature_usage', c.relkind::text,
           CASE WHEN c.relkind IN ('v', 'm') THEN 'user_feature_usage_view' ELSE 'user_feature_usage' END
    FROM pg_class c WHERE c.oid = to_regclass(format('%I.user_feature_usage', here));
    EXECUTE format('ALTER TABLE %I.user_feature_usage SET SCHEMA allotment_legacy', here);
    FOR taken IN SELECT * FROM allotment_legacy.put_aside p WHERE p.name = 'user_feature_usage' AND p.aside <> p.name LOOP
        EXECUTE format('ALTER TABLE allotment_legacy.%I RENAME TO %I', taken.name, taken.aside);
    END LOOP;
END
$end$
