-- all: all of it in one transaction, for those who run the printed SQL; alembic takes it batch by batch.
DO $all$
DECLARE
    more boolean := true;
BEGIN
    IF to_regclass('allotment_legacy.sources') IS NULL THEN
        RETURN;
    END IF;
    WHILE more LOOP
        SELECT r.more INTO more FROM allotment_legacy.read(1000) r;
    END LOOP;
    more := true;
    WHILE more LOOP
        SELECT s.more INTO more FROM allotment_legacy.settle(20000) s;
    END LOOP;
END
$all$
