-- find_by_schema: functions find tables and each other where they are, whatever the caller's path; what runs with its
-- owner's rights must.  Those of SQL are bound when they are made; those that only usage_period calls have its path.
DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY[
        'usage_period', 'count_usage', 'increment_feature_usage', 'update_feature_usage_timestamp'
    ] LOOP
        EXECUTE format('ALTER FUNCTION %I SET search_path = %I, pg_temp', name, current_schema());
    END LOOP;
END
$$
