-- freeze_name: where a legacy `feature_usage` was put aside, an application still writes to that name, and would find
-- no rows: it is told so, until 0008 has brought them over.
DO $freeze_name$
BEGIN
    IF to_regclass('allotment_legacy.feature_usage') IS NOT NULL
       OR to_regclass('allotment_legacy.feature_usage_view') IS NOT NULL THEN
        CREATE TRIGGER allotment_frozen BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON feature_usage
        WHEN (current_setting('allotment.migrates', true) IS DISTINCT FROM 'on')
        EXECUTE FUNCTION allotment_legacy.refuse_writes();
    END IF;
END
$freeze_name$
