-- read: bring over the rows in the next blocks of a legacy relation, and say how far that is.
-- $1 bigint: so many blocks   more: whether there is anything left to read   rows: read so far   share: of all blocks
-- A call is a transaction, or part of one: rows and the place up to which they were read are kept together, so a crash
-- repeats or loses none.  Rows of a user and feature add up; metadata is that of the latest use that has any.
-- Rows that a policy would hide are an error, not left out (row_security).
-- Where rows of a user and feature come to more than a count can be, everything is read anew, and they are kept aside.
-- What is not a use is kept aside in quarantined_records, whole, with the reason.
CREATE OR REPLACE FUNCTION allotment_legacy.read(blocks_max bigint, OUT more boolean, OUT rows bigint, OUT share float)
LANGUAGE plpgsql SET row_security = off SET timezone = 'UTC' AS $read$
DECLARE
    source allotment_legacy.sources;
    blocks bigint;
    first tid; after tid;
    bring text;
    rows_read bigint; rows_brought bigint; units_read numeric;
BEGIN
    IF (SELECT step FROM allotment_legacy.progress FOR UPDATE) = 'read' THEN
        SELECT * INTO source FROM allotment_legacy.sources s WHERE NOT s.done ORDER BY s.name LIMIT 1 FOR UPDATE;
    END IF;
    IF source.name IS NULL THEN
        more := false; rows := (SELECT coalesce(sum(s.rows), 0) FROM allotment_legacy.sources s); share := 1;
        RETURN;
    END IF;
    IF pg_relation_filenode(source.relation) <> source.filenode THEN
        PERFORM allotment_legacy.read_anew();  -- rewritten since (VACUUM FULL): its places are others
        more := true; rows := 0; share := 0;
        RETURN;
    END IF;
    blocks := pg_relation_size(source.relation) / current_setting('block_size')::bigint;
    first := format('(%s,0)', source.next_block)::tid; after := format('(%s,0)', source.next_block + blocks_max)::tid;
    IF source.person_is_text THEN
        EXECUTE format(
            $people$
            INSERT INTO allotment_legacy.people (name, id, external_id)
            SELECT n.name, CASE WHEN n.is_uuid THEN n.name::uuid ELSE allotment_legacy.user_of(n.name) END,
                   CASE WHEN NOT n.is_uuid THEN n.name END
            FROM (
                SELECT DISTINCT t.%I::text AS name, t.%I::text ~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' AS is_uuid
                FROM %s t WHERE t.ctid >= $1 AND t.ctid < $2
            ) n
            WHERE length(n.name) BETWEEN 1 AND 200 AND n.name !~ '[\u0001-\u001f\u007f-\u009f]'
              AND NOT EXISTS (SELECT FROM allotment_legacy.people p WHERE p.name = n.name)
            ON CONFLICT (name) DO NOTHING
            $people$, source.person_column, source.person_column, source.relation)
        USING first, after;
    END IF;
    bring := format(
        $rows$
        WITH seen AS MATERIALIZED (
            SELECT r.*, CASE
                WHEN r.person IS NULL THEN r.person_column || ' is null'
                WHEN r.user_id IS NULL THEN r.person_column || ': expected 1 to 200 characters, no control characters'
                WHEN r.feature IS NULL THEN r.feature_column || ' is null'
                WHEN r.feature COLLATE "C" !~ '^[a-z][a-z0-9_.:-]{0,99}$' THEN
                    r.feature_column || $$: expected 1 to 100 of a-z, 0-9, '_', '.', ':', '-', beginning with a letter$$
                WHEN NOT r.count_given THEN r.count_column || ' is null'
                WHEN r.counted IS NULL OR r.counted <> trunc(r.counted) THEN r.count_column || ' is not a whole number'
                WHEN r.counted < 0 THEN r.count_column || ' is negative'
                WHEN r.counted > 9007199254740991 THEN r.count_column || ' is above 9007199254740991'
                WHEN r.last_given AND (r.last_used IS NULL OR r.last_used < '1970-01-01Z' OR r.last_used >= '9000-01-01Z') THEN
                    'the last use is not an instant from 1970 on'
                WHEN (r.user_id, r.feature) IN (SELECT m.user_id, m.feature FROM allotment_legacy.too_much m) THEN
                    r.count_column || ' of all rows of the user and feature is above 9007199254740991'
                WHEN r.metadata_given AND r.metadata IS NULL THEN 'metadata is not JSON'
                END AS reason
            FROM (SELECT t.ctid AS place, %s FROM %s t WHERE t.ctid >= $1 AND t.ctid < $2 OFFSET 0) r
        ), rejected AS (
            INSERT INTO quarantined_records (source, place, raw, reason)
            SELECT %L, s.place::text, convert_to((SELECT row_to_json(t.*)::text FROM %s t WHERE t.ctid = s.place), 'UTF8'), s.reason
            FROM seen s WHERE s.reason IS NOT NULL
            ORDER BY s.place
        ), brought AS (
            INSERT INTO legacy_feature_usage AS b (user_id, feature, units, last_used, metadata)
            SELECT s.user_id, s.feature, sum(s.counted), max(coalesce(s.last_used, 'epoch')),
                   (array_agg(s.metadata ORDER BY s.last_used DESC NULLS LAST, s.place DESC)
                    FILTER (WHERE s.metadata IS NOT NULL)) [1]
            FROM seen s WHERE s.reason IS NULL
            GROUP BY s.user_id, s.feature
            ORDER BY s.user_id, s.feature
            ON CONFLICT (user_id, feature) DO UPDATE
            SET units = b.units + excluded.units,
                last_used = greatest(b.last_used, excluded.last_used),
                metadata = CASE WHEN excluded.last_used >= b.last_used THEN coalesce(excluded.metadata, b.metadata)
                                ELSE coalesce(b.metadata, excluded.metadata) END
        )
        SELECT count(*), count(*) FILTER (WHERE s.reason IS NULL), coalesce(sum(s.counted) FILTER (WHERE s.reason IS NULL), 0)
        FROM seen s
        $rows$, source.reading, source.relation, 'legacy:' || source.name, source.relation);
    BEGIN
        EXECUTE bring INTO rows_read, rows_brought, units_read USING first, after;
    EXCEPTION WHEN check_violation OR numeric_value_out_of_range THEN
        EXECUTE format(
            $much$
            INSERT INTO allotment_legacy.too_much (user_id, feature)
            SELECT r.user_id, r.feature
            FROM (SELECT %s FROM %s t WHERE t.ctid >= $1 AND t.ctid < $2 OFFSET 0) r
            LEFT JOIN legacy_feature_usage b USING (user_id, feature)
            WHERE r.counted BETWEEN 0 AND 9007199254740991 AND r.user_id IS NOT NULL AND r.feature IS NOT NULL
            GROUP BY r.user_id, r.feature, b.units
            HAVING sum(r.counted) + coalesce(b.units, 0) > 9007199254740991
            ON CONFLICT DO NOTHING
            $much$, source.reading, source.relation)
        USING first, after;
        GET DIAGNOSTICS rows_read = ROW_COUNT;
        IF rows_read = 0 THEN
            RAISE;  -- it was something else, and would be for ever
        END IF;
        PERFORM allotment_legacy.read_anew();
        more := true; rows := 0; share := 0;
        RETURN;
    END;
    UPDATE allotment_legacy.sources s
    SET next_block = s.next_block + blocks_max, done = s.next_block + blocks_max >= blocks,
        rows = s.rows + rows_read, brought = s.brought + rows_brought,
        rejected = s.rejected + rows_read - rows_brought, units = s.units + units_read
    WHERE s.name = source.name;
    more := true;
    rows := (SELECT sum(s.rows) FROM allotment_legacy.sources s);
    share := least(1, (source.next_block + blocks_max)::float / greatest(1, blocks));
END
$read$
