-- note_deleted: the trigger of a legacy table for a row that PostgreSQL deletes or changes because one that it refers to
-- was: what was brought over of it stays, and who compares has to know.
CREATE OR REPLACE FUNCTION allotment_legacy.note_deleted() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $note_deleted$
BEGIN
    EXECUTE format(
        $note$
        INSERT INTO allotment_legacy.deleted (source, user_id, feature, units)
        SELECT %L, r.user_id, r.feature, CASE WHEN r.counted BETWEEN 0 AND 9007199254740991 THEN r.counted ELSE 0 END
        FROM (SELECT %s FROM (SELECT ($1).*) t) r
        $note$, TG_ARGV[0], (SELECT s.reading FROM allotment_legacy.sources s WHERE s.name = TG_ARGV[0]))
    USING OLD;
    RETURN NULL;
END
$note_deleted$
