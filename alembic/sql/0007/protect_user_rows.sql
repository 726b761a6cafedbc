-- protect_user_rows: let users see their own rows of a table, and admins all.
-- whose: the column with the user.   The policies are those of seed 003: for all that a role is granted.
-- Users are granted SELECT alone: what they write would be counted nowhere; increment_feature_usage() does that.
CREATE FUNCTION protect_user_rows(of regclass, whose name DEFAULT 'user_id') RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', of);
    EXECUTE format(
        'CREATE POLICY own_rows ON %s TO allotment_user USING (%I = allotment_user_id()) WITH CHECK (%I = allotment_user_id())',
        of, whose, whose
    );
    EXECUTE format('CREATE POLICY all_rows ON %s TO allotment_admin USING (true) WITH CHECK (true)', of);
    EXECUTE format('GRANT SELECT ON %s TO allotment_user', of);
    EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %s TO allotment_admin', of);
END
$$
