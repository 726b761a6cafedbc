-- legacy_relations: what has a name of legacy feature usage (seed 004), and what becomes of it: asked by 0001 and 0008
-- before they change anything, and by check-schema.  A function of the session: nothing of it stays.
-- migrated: whether the name `feature_usage` is ours already, and what had it is in the schema allotment_legacy
-- rows: as estimated, -1 where nobody counted
-- state: 'read'; 'derived' from the other one, which is read; 'conflict', and the note says why
-- A view that is made of the other relation, or of a table that the other is made of, is not added to the other: that
-- would count use twice.  It has to be made of the other table alone, or else to show no use that the other does not.
CREATE OR REPLACE FUNCTION pg_temp.legacy_relations(migrated boolean)
RETURNS TABLE (relation oid, name text, kind text, rows bigint, state text, note text)
LANGUAGE plpgsql SET row_security = off AS $legacy_relations$
DECLARE
    one record;
    other record;
    owner record;
    differs boolean;
    sums CONSTANT text := $$SELECT coalesce(t.%I::text, '') AS person, coalesce(t.%I::text, '') AS feature,
        sum(CASE WHEN t.%3$I::text ~ '^[0-9]+([.][0-9]+)?$' THEN t.%3$I::text::numeric ELSE 0 END) AS units
        FROM %4$s t GROUP BY 1, 2$$;
BEGIN
    CREATE TEMPORARY TABLE legacy_named ON COMMIT DROP AS
    SELECT c.oid, CASE WHEN c.relname LIKE 'user%' THEN 'user_feature_usage' ELSE 'feature_usage' END AS name,
           c.relkind::text AS kind, c.reltuples::bigint AS rows, k.*, b.*
    FROM pg_class c, pg_temp.legacy_columns(c.oid) k, pg_temp.legacy_bases(c.oid) b
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f')
      AND (c.relnamespace = to_regnamespace(quote_ident(current_schema()))
           AND (c.relname = 'user_feature_usage' OR c.relname = 'feature_usage' AND NOT migrated)
           OR c.relnamespace = to_regnamespace('allotment_legacy')
           AND c.relname IN ('feature_usage', 'feature_usage_view', 'user_feature_usage', 'user_feature_usage_view'));
    FOR one IN SELECT * FROM pg_temp.legacy_named n ORDER BY n.name LOOP
        relation := one.oid; name := one.name; kind := one.kind; rows := one.rows;
        state := 'read'; note := '';
        SELECT * INTO other FROM pg_temp.legacy_named n
        WHERE n.oid <> one.oid AND one.oid <> ALL (n.beneath)
          AND (n.oid = ANY (one.beneath) OR n.tables && one.tables AND n.name = 'user_feature_usage');
        IF other.oid IS NOT NULL THEN
            state := 'derived'; note := format('shows what %s has', other.name);
            IF other.kind NOT IN ('r', 'p') OR NOT one.tables <@ other.tables THEN
                differs := true;
                IF num_nulls(one.person, one.feature, one.counted, other.person, other.feature, other.counted) = 0 THEN
                    EXECUTE format('SELECT EXISTS (SELECT FROM (%s) s LEFT JOIN (%s) o USING (person, feature)'
                                   ' WHERE s.units > coalesce(o.units, -1))',
                                   format(sums, one.person, one.feature, one.counted, one.oid::regclass),
                                   format(sums, other.person, other.feature, other.counted, other.oid::regclass))
                    INTO differs;
                END IF;
                IF differs THEN
                    state := 'conflict';
                    note := format('is made of what %s has and of more, and both can not be added up: drop or rename one of them',
                                   other.name);
                END IF;
            END IF;
        ELSIF num_nulls(one.person, one.feature, one.counted) > 0 THEN
            state := 'conflict';
            note := 'can not be brought over without ' || concat_ws(', ',
                CASE WHEN one.person IS NULL THEN 'user_id or profile_id' END,
                CASE WHEN one.feature IS NULL THEN 'feature_name or feature_type or feature or feature_id' END,
                CASE WHEN one.counted IS NULL THEN 'usage_count or current_usage or used or count' END);
        END IF;
        SELECT c.oid::regclass AS name, pg_get_userbyid(c.relowner) AS role INTO owner FROM pg_class c
        WHERE (c.oid = one.oid OR state = 'read' AND c.oid = ANY (one.tables)) AND NOT pg_has_role(c.relowner, 'USAGE')
        ORDER BY c.oid = one.oid DESC LIMIT 1;
        IF owner.role IS NOT NULL THEN
            state := 'conflict';
            note := format('%s belongs to %s, and %s may not put it aside: migrate as its owner, or GRANT %2$I TO %3$I',
                           owner.name, owner.role, current_user);
        END IF;
        RETURN NEXT;
    END LOOP;
    DROP TABLE pg_temp.legacy_named;
END
$legacy_relations$
