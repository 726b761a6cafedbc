-- sources: say which legacy relations are read, and how their columns are; from here on they are not written to.
-- What a downgrade had no legacy row for (uses_since) is read too, and says what its users are called.  A view of what
-- the other relation has is not read; of any other view, or a table of several parts, a copy is.
-- Names and types are what is found in the wild: an instant without a zone is UTC, a user is a uuid or any text.
DO $sources$
DECLARE
    here CONSTANT text := current_schema();
    instants CONSTANT text[] := ARRAY['last_used', 'last_used_at', 'last_usage', 'updated_at', 'created_at'];
    found record;
    seen record;
    read regclass;
    part regclass;
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
        SELECT * FROM pg_temp.legacy_relations(migrated => true)
        UNION ALL
        SELECT to_regclass('allotment_legacy.uses_since'), 'uses_since', 'r', -1, 'read', ''
        WHERE to_regclass('allotment_legacy.uses_since') IS NOT NULL
        ORDER BY state, name  -- conflicts are told before anything is locked
    LOOP
        IF found.state = 'conflict' THEN
            RAISE EXCEPTION '%: %', found.name, found.note USING ERRCODE = 'AL001';
        END IF;
        FOR part IN
            SELECT unnest(b.tables)::regclass FROM pg_temp.legacy_bases(found.relation) b
            WHERE found.name <> 'uses_since' AND found.state = 'read' ORDER BY 1
        LOOP
            EXECUTE format('CREATE OR REPLACE TRIGGER allotment_frozen BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON %s'
                           ' EXECUTE FUNCTION allotment_legacy.refuse_writes()', part);
        END LOOP;
        CONTINUE WHEN found.state = 'derived';
        read := found.relation::regclass;
        IF found.kind <> 'r' OR EXISTS (SELECT FROM pg_inherits i WHERE i.inhparent = found.relation) THEN
            EXECUTE format('CREATE TABLE allotment_legacy.%I AS TABLE %s', found.name || '_rows', read);
            read := to_regclass(format('allotment_legacy.%I', found.name || '_rows'));
        ELSIF found.name <> 'uses_since' THEN
            EXECUTE format('CREATE TRIGGER allotment_deleted AFTER DELETE OR UPDATE ON %s'
                           ' FOR EACH ROW EXECUTE FUNCTION allotment_legacy.note_deleted(%L)', read, found.name);
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
    IF to_regclass('allotment_legacy.uses_since') IS NOT NULL THEN
        INSERT INTO allotment_legacy.people (name, id, external_id)
        SELECT k.external_id, k.user_id, k.external_id FROM allotment_legacy.uses_since k WHERE k.external_id IS NOT NULL
        ORDER BY k.external_id, k.user_id
        ON CONFLICT (name) DO NOTHING;
    END IF;
END
$sources$
