-- refuse_writes: the trigger of a legacy table: what were written now would not be brought over.
CREATE OR REPLACE FUNCTION allotment_legacy.refuse_writes() RETURNS trigger LANGUAGE plpgsql AS $refuse_writes$
BEGIN
    RAISE EXCEPTION 'the rows of % were brought over to feature_usage, or are being brought over', TG_TABLE_NAME
        USING ERRCODE = 'read_only_sql_transaction', HINT = 'Record usage through Allotment.';
END
$refuse_writes$
