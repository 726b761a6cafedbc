-- find_by_schema: what runs with its owner's rights finds tables and functions where they are, whatever the caller's path.
DO $$
BEGIN
    EXECUTE format('ALTER FUNCTION increment_feature_usage SET search_path = %I, pg_temp', current_schema());
END
$$
