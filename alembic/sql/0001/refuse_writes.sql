-- refuse_writes: the trigger of a legacy table: what were written now would not be brought over.
-- And of `feature_usage` until all is: what an application wrote there would meet a table that is empty yet.
-- A row that goes because another does, which it refers to, may go: or nobody could delete a user.  Such a statement
-- of PostgreSQL itself is told from one of an application's trigger by its operator, on the line of who called.
CREATE OR REPLACE FUNCTION allotment_legacy.refuse_writes() RETURNS trigger LANGUAGE plpgsql AS $refuse_writes$
DECLARE
    context text;
BEGIN
    GET DIAGNOSTICS context = PG_CONTEXT;
    IF pg_trigger_depth() > 1 AND split_part(context, E'\n', 2) LIKE '% OPERATOR(pg_catalog.%) %' THEN
        RETURN NULL;
    END IF;
    RAISE EXCEPTION 'the rows of % were brought over to feature_usage, or are being brought over', TG_TABLE_NAME
        USING ERRCODE = 'read_only_sql_transaction', HINT = 'Record usage through Allotment.';
END
$refuse_writes$
