-- unprotect_tables: drop every policy of ours, and what the roles were granted here.  The roles stay: other databases
-- of the cluster may use them, and members of them would lose their membership.
DO $$
DECLARE
    found record;
BEGIN
    FOR found IN
        SELECT polrelid::regclass AS name FROM pg_policy
        WHERE polname = 'all_rows' AND 'allotment_admin'::regrole = ANY (polroles)
        UNION ALL
        SELECT inhrelid::regclass FROM pg_inherits WHERE inhparent = 'usage_logs'::regclass
    LOOP
        EXECUTE format('DROP POLICY IF EXISTS own_rows ON %s', found.name);
        EXECUTE format('DROP POLICY IF EXISTS all_rows ON %s', found.name);
        EXECUTE format('ALTER TABLE %s DISABLE ROW LEVEL SECURITY', found.name);
    END LOOP;
    EXECUTE format('REVOKE ALL ON ALL TABLES IN SCHEMA %I FROM allotment_user, allotment_admin', current_schema());
    EXECUTE format('REVOKE ALL ON SCHEMA %I FROM allotment_user, allotment_admin', current_schema());
    REVOKE ALL ON FUNCTION increment_feature_usage FROM allotment_user, allotment_admin;
    GRANT EXECUTE ON FUNCTION count_usage, increment_feature_usage TO PUBLIC;
END
$$
