-- put_back: when no table of ours is left, give `feature_usage` back its name, and indexes theirs.
-- What was used and has no legacy row to go to stays, in allotment_legacy.uses_since.
DO $put_back$
DECLARE
    here CONSTANT text := current_schema();
    found record;
    taken record;
BEGIN
    FOR taken IN
        SELECT c.relname::text AS name FROM pg_class c
        WHERE c.relnamespace = to_regnamespace(quote_ident(here)) AND c.relkind IN ('i', 'I')
          AND c.relname IN ('legacy_feature_usage_pkey', 'legacy_uq_feature_usage_user_feature',
                            'legacy_idx_feature_usage_user_id', 'legacy_idx_feature_usage_name')
    LOOP
        EXECUTE format('ALTER INDEX %I.%I RENAME TO %I', here, taken.name, substr(taken.name, length('legacy_') + 1));
    END LOOP;
    IF to_regclass('allotment_legacy.put_aside') IS NULL THEN
        RETURN;
    END IF;
    -- What a bringing over left that never ended.
    DROP TABLE IF EXISTS legacy_feature_usage;
    FOR found IN
        SELECT t.tgname AS name, t.tgrelid::regclass AS relation FROM pg_trigger t
        WHERE t.tgname IN ('allotment_frozen', 'allotment_deleted') AND NOT t.tgisinternal AND t.tgparentid = 0
    LOOP
        EXECUTE format('DROP TRIGGER %I ON %s', found.name, found.relation);
    END LOOP;
    FOR found IN SELECT * FROM allotment_legacy.put_aside LOOP
        IF found.aside <> found.name THEN
            EXECUTE format('ALTER TABLE allotment_legacy.%I RENAME TO %I', found.aside, found.name);
        END IF;
        EXECUTE format('ALTER TABLE allotment_legacy.%I SET SCHEMA %I', found.name, here);
    END LOOP;
    FOR found IN
        SELECT p.oid::regprocedure AS signature FROM pg_proc p
        WHERE p.pronamespace = 'allotment_legacy'::regnamespace
    LOOP
        EXECUTE format('DROP FUNCTION %s', found.signature);
    END LOOP;
    FOR found IN
        SELECT c.relname AS name FROM pg_class c
        WHERE c.relnamespace = 'allotment_legacy'::regnamespace
          AND c.relname IN ('put_aside', 'sources', 'people', 'progress', 'returned', 'deleted', 'too_much', 'feature_usage_rows',
                            'user_feature_usage_rows')
    LOOP
        EXECUTE format('DROP TABLE allotment_legacy.%I', found.name);
    END LOOP;
    IF NOT EXISTS (SELECT FROM pg_class WHERE relnamespace = 'allotment_legacy'::regnamespace) THEN
        DROP SCHEMA allotment_legacy;
    END IF;
END
$put_back$
