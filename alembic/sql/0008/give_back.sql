-- give_back: bring the old structure back, its rows with what was used since, and take what it had out of ours.
-- What was used goes to the latest row of its user and feature, or to a new one; where the legacy relation takes
-- neither (it is a view, asks for columns that nobody knows, or has a bound), it stays in allotment_legacy.uses_since.
-- A legacy `feature_usage` has its name back when 0001 is taken back: until then the name is ours.
DO $give_back$
DECLARE
    here CONSTANT text := current_schema();
    ours CONSTANT text[] := ARRAY['feature_usage_pkey', 'uq_feature_usage_user_feature', 'idx_feature_usage_user_id',
                                  'idx_feature_usage_name'];
    found record;
    source record;
    target regclass;
    types jsonb;
    last_used text;
    names text;
    given text;
    step text;
    last bigint;
BEGIN
    IF to_regclass('allotment_legacy.sources') IS NULL THEN
        RETURN;
    END IF;
    CREATE TABLE IF NOT EXISTS allotment_legacy.uses_since (
        user_id uuid, external_id text, feature_name text, usage_count bigint NOT NULL, last_used timestamptz,
        metadata jsonb, PRIMARY KEY (user_id, feature_name)
    );
    SET LOCAL timezone = 'UTC';  -- as rows were written when they were kept aside
    CREATE TEMPORARY TABLE since ON COMMIT DROP AS
    SELECT row_number() OVER (ORDER BY f.user_id, f.feature_name) AS n, NULL::oid AS part, NULL::tid AS place,
           f.user_id, coalesce(u.external_id, u.id::text) AS name, u.external_id, f.feature_name AS feature,
           f.usage_count - coalesce(b.units, 0) - coalesce(r.units, 0) AS units, f.last_used, f.metadata, false AS given
    FROM feature_usage f
    JOIN users u ON u.id = f.user_id
    LEFT JOIN legacy_feature_usage b ON b.user_id = f.user_id AND b.feature = f.feature_name
    LEFT JOIN allotment_legacy.returned r ON r.user_id = f.user_id AND r.feature = f.feature_name
    WHERE f.usage_count - coalesce(b.units, 0) - coalesce(r.units, 0) <> 0;
    SET CONSTRAINTS ALL IMMEDIATE;  -- a table with checks that wait can not be moved
    FOR found IN
        SELECT t.tgname AS name, t.tgrelid::regclass AS relation FROM pg_trigger t
        WHERE t.tgname IN ('allotment_frozen', 'allotment_deleted') AND NOT t.tgisinternal AND t.tgparentid = 0
    LOOP
        EXECUTE format('DROP TRIGGER %I ON %s', found.name, found.relation);
    END LOOP;
    SELECT s.*, p.aside INTO source
    FROM allotment_legacy.put_aside p JOIN allotment_legacy.sources s USING (name)
    WHERE p.kind IN ('r', 'p') ORDER BY p.name DESC LIMIT 1;
    IF source.name IS NOT NULL THEN
        UPDATE since s SET name = s.user_id::text WHERE NOT source.person_is_text;
        target := to_regclass(format('allotment_legacy.%I', source.aside));
        SELECT jsonb_object_agg(a.attname, format_type(a.atttypid, NULL)) INTO types
        FROM pg_attribute a WHERE a.attrelid = target AND a.attnum > 0 AND NOT a.attisdropped;
        last_used := CASE types ->> source.last_column
            WHEN 'timestamp without time zone' THEN $$(s.last_used AT TIME ZONE 'UTC')$$
            WHEN 'date' THEN $$(s.last_used AT TIME ZONE 'UTC')::date$$
            WHEN 'timestamp with time zone' THEN 's.last_used' END;
        ALTER TABLE since ADD PRIMARY KEY (n);
        EXECUTE format(
            $latest$
            UPDATE since s SET part = l.part, place = l.place
            FROM (
                SELECT DISTINCT ON (s.n) s.n, t.tableoid AS part, t.ctid AS place
                FROM since s
                LEFT JOIN allotment_legacy.people p ON p.id = s.user_id
                JOIN %1$s t ON t.%2$I::text = coalesce(p.name, s.name) AND t.%3$I::text = s.feature
                WHERE allotment_legacy.number_of(t.%6$I::text) >= 0 AND NOT EXISTS (
                    SELECT FROM quarantined_records q
                    WHERE q.source = %4$L AND q.raw = convert_to(row_to_json(t.*)::text, 'UTF8')
                )
                ORDER BY s.n, %5$s t.ctid DESC
            ) l WHERE l.n = s.n
            $latest$,
            target, source.person_column, source.feature_column, 'legacy:' || source.name,
            CASE WHEN last_used IS NULL THEN '' ELSE format('t.%I DESC NULLS LAST,', source.last_column) END,
            source.count_column);
        step := format(
            $update$
            WITH given AS (
                UPDATE %1$s t SET %2$s
                FROM since s WHERE t.tableoid = s.part AND t.ctid = s.place AND s.n BETWEEN $1 AND $2
                RETURNING s.n
            )
            UPDATE since s SET given = true FROM given g WHERE g.n = s.n
            $update$,
            target,
            concat_ws(', ',
                format('%1$I = greatest(0, t.%1$I::text::numeric + s.units)::%2$s', source.count_column,
                       types ->> source.count_column),
                CASE WHEN last_used IS NOT NULL THEN
                    format('%1$I = greatest(t.%1$I, %2$s)', source.last_column, last_used) END,
                CASE WHEN source.metadata_column IS NOT NULL THEN
                    format('%1$I = coalesce(s.metadata::text::%2$s, t.%1$I)', source.metadata_column,
                           types ->> source.metadata_column) END));
        names := concat_ws(', ', quote_ident(source.person_column), quote_ident(source.feature_column),
                           quote_ident(source.count_column));
        given := concat_ws(', ', format('s.name::%s, s.feature::%s, s.units::%s', types ->> source.person_column,
                                        types ->> source.feature_column, types ->> source.count_column));
        IF last_used IS NOT NULL THEN
            names := names || ', ' || quote_ident(source.last_column);
            given := given || ', ' || last_used;
        END IF;
        IF source.metadata_column IS NOT NULL THEN
            names := names || ', ' || quote_ident(source.metadata_column);
            given := given || ', s.metadata::text::' || (types ->> source.metadata_column);
        END IF;
        -- A number that is given by nobody goes on from the highest.
        IF EXISTS (
            SELECT FROM pg_attribute a
            WHERE a.attrelid = target AND a.attname = 'id' AND NOT a.atthasdef AND a.attidentity = '' AND a.attnotnull
        ) THEN
            names := names || ', id';
            given := given || CASE
                WHEN types ->> 'id' IN ('smallint', 'integer', 'bigint') THEN
                    format(', (SELECT coalesce(max(t.id), 0) FROM %s t) + row_number() OVER (ORDER BY s.user_id, s.feature)', target)
                ELSE format(', gen_random_uuid()::%s', types ->> 'id') END;
        END IF;
        last := (SELECT max(s.n) FROM since s);
        FOREACH step IN ARRAY ARRAY[step, format(
            $insert$
            WITH given AS (
                INSERT INTO %s (%s) SELECT %s FROM since s WHERE NOT s.given AND s.units > 0 AND s.n BETWEEN $1 AND $2
            )
            UPDATE since s SET given = true WHERE s.units > 0 AND s.n BETWEEN $1 AND $2
            $insert$, target, names, given)]
        LOOP
            BEGIN
                EXECUTE step USING 1, last;
            EXCEPTION WHEN integrity_constraint_violation OR data_exception OR raise_exception THEN
                RAISE NOTICE 'what % does not take stays in allotment_legacy.uses_since: %', source.name, SQLERRM;
                FOR n IN 1 .. last LOOP
                    BEGIN
                        EXECUTE step USING n, n;
                    EXCEPTION WHEN integrity_constraint_violation OR data_exception OR raise_exception THEN
                        NULL;  -- of one row; the others go back
                    END;
                END LOOP;
            END;
        END LOOP;
    END IF;
    INSERT INTO allotment_legacy.uses_since AS k (user_id, external_id, feature_name, usage_count, last_used, metadata)
    SELECT s.user_id, s.external_id, s.feature, s.units, s.last_used, s.metadata FROM since s WHERE NOT s.given AND s.units > 0
    ON CONFLICT (user_id, feature_name) DO UPDATE
    SET usage_count = k.usage_count + excluded.usage_count, last_used = excluded.last_used, metadata = excluded.metadata;
    INSERT INTO allotment_legacy.returned AS r (user_id, feature, units)
    SELECT s.user_id, s.feature, s.units FROM since s
    ON CONFLICT (user_id, feature) DO UPDATE SET units = r.units + excluded.units;
    IF NOT EXISTS (SELECT FROM allotment_legacy.uses_since) THEN
        DROP TABLE allotment_legacy.uses_since;
    END IF;

    INSERT INTO stale_users (user_id) SELECT DISTINCT b.user_id FROM legacy_feature_usage b;
    DELETE FROM feature_usage f USING legacy_feature_usage b
    WHERE f.user_id = b.user_id AND f.feature_name = b.feature AND f.usage_count = b.units;
    UPDATE feature_usage f SET usage_count = f.usage_count - b.units
    FROM legacy_feature_usage b WHERE f.user_id = b.user_id AND f.feature_name = b.feature;
    DELETE FROM usage_counters c USING legacy_feature_usage b
    WHERE c.user_id = b.user_id AND c.feature = b.feature AND c.lifetime_used = b.units;
    UPDATE usage_counters c SET lifetime_used = greatest(0, c.lifetime_used - b.units)
    FROM legacy_feature_usage b WHERE c.user_id = b.user_id AND c.feature = b.feature;
    DELETE FROM quarantined_records q WHERE q.source LIKE 'legacy:%';

    FOR found IN SELECT * FROM allotment_legacy.put_aside p WHERE p.name = 'user_feature_usage' LOOP
        IF found.aside <> found.name THEN
            EXECUTE format('ALTER TABLE allotment_legacy.%I RENAME TO %I', found.aside, found.name);
        END IF;
        FOR source IN
            SELECT i.relname AS name FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid
            WHERE x.indrelid = 'allotment_legacy.user_feature_usage'::regclass AND i.relname = ANY (ours)
        LOOP
            EXECUTE format('ALTER INDEX allotment_legacy.%I RENAME TO %I', source.name, 'legacy_' || source.name);
        END LOOP;
        EXECUTE format('ALTER TABLE allotment_legacy.user_feature_usage SET SCHEMA %I', here);
    END LOOP;
    DELETE FROM allotment_legacy.put_aside p WHERE p.name = 'user_feature_usage';
    DROP TABLE IF EXISTS allotment_legacy.feature_usage_rows, allotment_legacy.user_feature_usage_rows;
    DELETE FROM allotment_legacy.sources;
    TRUNCATE allotment_legacy.deleted, allotment_legacy.too_much;
    UPDATE allotment_legacy.progress SET step = 'read', after_user = NULL, after_feature = NULL, settled = 0, made = 0;
END
$give_back$
