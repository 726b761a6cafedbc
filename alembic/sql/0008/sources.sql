-- sources: say which legacy relations are read, and how their columns are; from here on they are not written to.
-- What a downgrade had no legacy row for (uses_since) is read too.  A view of the other relation has no rows of its own; of any other view, or partitioned table, a copy is read.
-- Names and types are what is found in the wild: an instant without a zone is UTC, a user is a uuid or any text.
DO $sources$
DECLARE
    here CONSTANT text := current_schema();
    instants CONSTANT text[] := ARRAY['last_used', 'last_used_at', 'last_usage', 'updated_at', 'created_at'];
    expected CONSTANT text := 'expected user_id, a feature_name or feature_type, and a usage_count or current_usage';
    found record;
    seen record;
    read regclass;
    person text; person_column text; person_type text;
    feature text; feature_column text;
    counted text; count_given text; count_column text;
    metadata text; metadata_given text; metadata_column text;
    last_used text; last_given text; last_column text;
BEGIN
    IF to_regclass('allotment_legacy.sources') IS NULL THEN
        RETURN;
    END IF;
    IF EXISTS (SELECT FROM allotment_legacy.sources) THEN
        RETURN;  -- known since a run that did not come to its end
    END IF;
    SET LOCAL row_security = off;  -- rows that a policy would hide are an error, not left out
    FOR found IN
        SELECT c.oid::regclass AS relation, c.relkind::text AS kind, coalesce(p.name, c.relname) AS name
        FROM pg_class c
        LEFT JOIN allotment_legacy.put_aside p ON p.aside = c.relname AND c.relnamespace = 'allotment_legacy'::regnamespace
        WHERE p.name IS NOT NULL
           OR c.relname = 'uses_since' AND c.relnamespace = 'allotment_legacy'::regnamespace
           OR c.relname = 'user_feature_usage' AND c.relnamespace = to_regnamespace(quote_ident(here))
              AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
        ORDER BY name
    LOOP
        -- Whether it shows what the other has, itself or through views between them.
        CONTINUE WHEN EXISTS (
            WITH RECURSIVE under AS (
                SELECT found.relation::oid AS oid
                UNION
                SELECT d.refobjid FROM under u
                JOIN pg_rewrite r ON r.ev_class = u.oid
                JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid
                                AND d.refclassid = 'pg_class'::regclass
            )
            SELECT FROM under WHERE oid <> found.relation AND oid IN (
                to_regclass(format('%I.user_feature_usage', here)), to_regclass('allotment_legacy.feature_usage')
            )
        );
        read := found.relation;
        IF found.kind IN ('r', 'p') AND found.name <> 'uses_since' THEN
            EXECUTE format('CREATE TRIGGER allotment_frozen BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON %s'
                           ' EXECUTE FUNCTION allotment_legacy.refuse_writes()', found.relation);
        END IF;
        IF found.kind <> 'r' THEN
            EXECUTE format('CREATE TABLE allotment_legacy.%I AS TABLE %s', found.name || '_rows', found.relation);
            read := to_regclass(format('allotment_legacy.%I', found.name || '_rows'));
        END IF;
        person := NULL; feature := NULL; counted := NULL;
        metadata := 'NULL::jsonb'; metadata_given := 'false'; metadata_column := NULL;
        last_used := NULL; last_given := 'false'; last_column := NULL;
        FOR seen IN
            SELECT a.attname::text AS name, 't.' || quote_ident(a.attname) AS place,
                   CASE WHEN y.typtype = 'd' THEN y.typbasetype ELSE y.oid END::regtype::text AS type
            FROM unnest(ARRAY['user_id', 'profile_id', 'feature_name', 'feature_type', 'feature', 'feature_id',
                              'usage_count', 'current_usage', 'used', 'count', 'metadata'] || instants)
                 WITH ORDINALITY AS o (name, place)
            JOIN pg_attribute a ON a.attname = o.name AND a.attrelid = read AND a.attnum > 0 AND NOT a.attisdropped
            JOIN pg_type y ON y.oid = a.atttypid
            ORDER BY o.place
        LOOP
            IF seen.name IN ('user_id', 'profile_id') THEN
                IF person IS NULL THEN
                    person := seen.place; person_column := seen.name; person_type := seen.type;
                END IF;
            ELSIF seen.name IN ('feature_name', 'feature_type', 'feature', 'feature_id') THEN
                IF feature IS NULL THEN
                    feature := seen.place || '::text'; feature_column := seen.name;
                END IF;
            ELSIF seen.name = 'metadata' THEN
                metadata_column := seen.name;
                metadata_given := format($$nullif(%s::text, '') IS NOT NULL$$, seen.place);
                metadata := CASE WHEN seen.type = 'jsonb' THEN seen.place
                                 ELSE format('allotment_legacy.json_of(%s::text)', seen.place) END;
            ELSIF seen.name = ANY (instants) THEN
                last_column := coalesce(last_column, seen.name);
                last_given := last_given || ' OR ' || seen.place || ' IS NOT NULL';
                last_used := concat_ws(', ', last_used, CASE seen.type
                    WHEN 'timestamp with time zone' THEN seen.place
                    WHEN 'timestamp without time zone' THEN seen.place || $$ AT TIME ZONE 'UTC'$$
                    WHEN 'date' THEN seen.place || $$::timestamp AT TIME ZONE 'UTC'$$
                    ELSE format('allotment_legacy.instant_of(%s::text)', seen.place) END);
            ELSIF counted IS NULL THEN
                count_given := seen.place || ' IS NOT NULL'; count_column := seen.name;
                counted := CASE WHEN seen.type IN ('smallint', 'integer', 'bigint', 'numeric') THEN seen.place || '::numeric'
                                ELSE format('allotment_legacy.number_of(%s::text)', seen.place) END;
            END IF;
        END LOOP;
        IF person IS NULL OR feature IS NULL OR counted IS NULL THEN
            RAISE EXCEPTION '% can not be read: %', found.name, expected USING ERRCODE = 'AL001';
        END IF;
        INSERT INTO allotment_legacy.sources (name, relation, filenode, person_is_text, person_column, feature_column,
                                              count_column, last_column, metadata_column, reading)
        VALUES (
            found.name, read, pg_relation_filenode(read), person_type <> 'uuid', person_column, feature_column,
            count_column, last_column, metadata_column,
            format('%s::text AS person, %s AS user_id, %L AS person_column, %s AS feature, %L AS feature_column,'
                   ' %s AS counted, %s AS count_given, %L AS count_column, %s AS last_used, %s AS last_given,'
                   ' %s AS metadata, %s AS metadata_given',
                   person,
                   CASE WHEN person_type = 'uuid' THEN person
                        ELSE format('(SELECT p.id FROM allotment_legacy.people p WHERE p.name = %s::text)', person) END,
                   person_column, feature, feature_column, counted, count_given, count_column,
                   coalesce('coalesce(' || last_used || ')', 'NULL::timestamptz'), last_given, metadata, metadata_given)
        );
    END LOOP;
END
$sources$
