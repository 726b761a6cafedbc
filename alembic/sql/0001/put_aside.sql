-- put_aside: before any table of ours is made, take what has the name `feature_usage` out of the way (seed 004).
-- A view, or a table of seed 000's form, moves as it is, with its rows, indexes, grants and dependents, to the
-- schema allotment_legacy, from which 0008 brings its rows over.  Names of indexes of ours that
-- others have taken get `legacy_` before them.  Where there is neither, nothing is done.
DO $put_aside$
DECLARE
    here CONSTANT text := current_schema();
    ours CONSTANT text[] := ARRAY['feature_usage_pkey', 'uq_feature_usage_user_feature', 'idx_feature_usage_user_id',
                                  'idx_feature_usage_name'];
    found record;
    taken text;
BEGIN
    IF to_regclass(format('%I.feature_usage', here)) IS NULL
       AND to_regclass(format('%I.user_feature_usage', here)) IS NULL THEN
        RETURN;
    END IF;
    CREATE SCHEMA IF NOT EXISTS allotment_legacy;
    CREATE TABLE IF NOT EXISTS allotment_legacy.put_aside (name text PRIMARY KEY, kind text NOT NULL, aside text NOT NULL);
    FOR found IN
        SELECT c.oid, c.relname::text AS name, c.relkind::text AS kind,
               CASE WHEN c.relkind IN ('v', 'm') THEN c.relname || '_view' ELSE c.relname END AS aside
        FROM pg_class c
        WHERE c.relnamespace = to_regnamespace(quote_ident(here)) AND c.relname = 'feature_usage'
          AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
    LOOP
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
