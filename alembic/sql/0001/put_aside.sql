-- put_aside: before any table of ours is made, take what has the name `feature_usage` out of the way (seed 004).
-- A view, or a table of seed 000's form, moves as it is, with its rows, indexes, grants and dependents, to the
-- schema allotment_legacy, from which 0008 brings its rows over.  Names of indexes of ours that
-- others have taken get `legacy_` before them.  Where there is neither, nothing is done.
-- What could not be brought over is refused now, when nothing has changed.
DO $put_aside$
DECLARE
    here CONSTANT text := current_schema();
    ours CONSTANT text[] := ARRAY['feature_usage_pkey', 'uq_feature_usage_user_feature', 'idx_feature_usage_user_id',
                                  'idx_feature_usage_name'];
    found record;
    taken text;
BEGIN
    IF current_setting('server_encoding') <> 'UTF8' THEN
        RAISE EXCEPTION 'the database has the encoding %, and needs UTF8', current_setting('server_encoding')
            USING ERRCODE = 'AL001';
    END IF;
    IF to_regclass(format('%I.feature_usage', here)) IS NULL
       AND to_regclass(format('%I.user_feature_usage', here)) IS NULL THEN
        RETURN;
    END IF;
    CREATE SCHEMA IF NOT EXISTS allotment_legacy;
    CREATE TABLE IF NOT EXISTS allotment_legacy.put_aside (name text PRIMARY KEY, kind text NOT NULL, aside text NOT NULL);
    FOR found IN
        SELECT l.*, CASE WHEN l.kind IN ('v', 'm') THEN l.name || '_view' ELSE l.name END AS aside
        FROM pg_temp.legacy_relations(migrated => false) l
    LOOP
        IF found.state = 'conflict' THEN
            RAISE EXCEPTION '%: %', found.name, found.note USING ERRCODE = 'AL001';
        END IF;
        CONTINUE WHEN found.name <> 'feature_usage';
        EXECUTE format('ALTER TABLE %I.%I SET SCHEMA allotment_legacy', here, found.name);
        IF found.aside <> found.name THEN
            EXECUTE format('ALTER TABLE allotment_legacy.%I RENAME TO %I', found.name, found.aside);
        END IF;
        INSERT INTO allotment_legacy.put_aside VALUES (found.name, found.kind, found.aside);
    END LOOP;
    FOR taken IN
        SELECT c.relname FROM pg_class c
        WHERE c.relnamespace = to_regnamespace(quote_ident(here)) AND c.relname = ANY (ours) AND c.relkind IN ('i', 'I')
    LOOP
        EXECUTE format('ALTER INDEX %I.%I RENAME TO %I', here, taken, 'legacy_' || taken);
    END LOOP;
END
$put_aside$
