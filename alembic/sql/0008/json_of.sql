-- json_of: a text as JSON, null if it is none that PostgreSQL can keep.
CREATE OR REPLACE FUNCTION allotment_legacy.json_of(given text) RETURNS jsonb LANGUAGE plpgsql IMMUTABLE AS $json_of$
BEGIN
    RETURN nullif(given, '')::jsonb;
EXCEPTION WHEN data_exception OR program_limit_exceeded OR statement_too_complex THEN
    RETURN NULL;
END
$json_of$
