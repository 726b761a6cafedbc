-- again: the rows of the legacy relations as they are read, for whoever compares them with what was brought over.
-- set_aside: in quarantined_records, by content: a place is another one once the table was rewritten
CREATE OR REPLACE FUNCTION allotment_legacy.again()
RETURNS TABLE (source text, set_aside boolean, user_id uuid, feature text, units numeric) LANGUAGE plpgsql
SET timezone = 'UTC' AS $again$
DECLARE
    one allotment_legacy.sources;
BEGIN
    FOR one IN SELECT * FROM allotment_legacy.sources LOOP
        RETURN QUERY EXECUTE format(
            $rows$
            SELECT %1$L, q.raw IS NOT NULL, r.user_id, r.feature, CASE WHEN q.raw IS NULL THEN r.counted END
            FROM (SELECT convert_to(row_to_json(t.*)::text, 'UTF8') AS raw, %2$s FROM %3$s t OFFSET 0) r
            LEFT JOIN (SELECT DISTINCT k.raw FROM quarantined_records k WHERE k.source = %4$L) q ON q.raw = r.raw
            $rows$, one.name, one.reading, one.relation, 'legacy:' || one.name);
    END LOOP;
END
$again$
