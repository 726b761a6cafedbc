-- number_of: a text as a number, null if it is none.
CREATE OR REPLACE FUNCTION allotment_legacy.number_of(given text) RETURNS numeric LANGUAGE plpgsql IMMUTABLE AS $number_of$
BEGIN
    RETURN given::numeric;
EXCEPTION WHEN data_exception THEN
    RETURN NULL;
END
$number_of$
