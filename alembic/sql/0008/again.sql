-- again: the rows of the legacy relations as they are read, for whoever compares them with what was brought over.
-- set_aside: in quarantined_records
CREATE OR REPLACE FUNCTION allotment_legacy.again()
RETURNS TABLE (source text, set_aside boolean, user_id uuid, feature text, units numeric) LANGUAGE plpgsql AS $again$
DECLARE
    one allotment_legacy.sources;
BEGIN
    FOR one IN SELECT * FROM allotment_legacy.sources LOOP
        RETURN QUERY EXECUTE format(
            $rows$
            SELECT %1$L, q.place IS NOT NULL, r.user_id, r.feature, CASE WHEN q.place IS NULL THEN r.counted END
            FROM (SELECT t.ctid AS place, %2$s FROM %3$s t OFFSET 0) r
            LEFT JOIN quarantined_records q ON q.source = %4$L AND q.place = r.place::text
            $rows$, one.name, one.reading, one.relation, 'legacy:' || one.name);
    END LOOP;
END
$again$
