-- instant_of: a text as an instant, null if it is none; without a zone it is UTC.
CREATE OR REPLACE FUNCTION allotment_legacy.instant_of(given text) RETURNS timestamptz LANGUAGE plpgsql
SET timezone = 'UTC' AS $instant_of$
BEGIN
    RETURN given::timestamptz;
EXCEPTION WHEN data_exception THEN
    RETURN NULL;
END
$instant_of$
