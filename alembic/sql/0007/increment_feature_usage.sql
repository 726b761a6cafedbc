-- increment_feature_usage (seed 004): count units of a feature as used now; see count_usage.
-- Returns the units that the user ever used of it.  Several in one transaction: in the order of user and feature,
-- or PostgreSQL may have to end one of two that wait for each other, which then has counted nothing.
-- It writes with the rights of its owner, so it asks who calls: the role that was set, or who has logged in.
-- Admins count for anybody, and so does who owns the tables; users for themselves.
CREATE OR REPLACE FUNCTION increment_feature_usage(
    user_id uuid, feature text, amount bigint DEFAULT 1, metadata jsonb DEFAULT NULL
) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    caller name := coalesce(nullif(current_setting('role'), 'none'), session_user);
BEGIN
    IF user_id IS DISTINCT FROM allotment_user_id()
        AND NOT pg_has_role(caller, 'allotment_admin', 'USAGE') AND NOT pg_has_role(caller, current_user, 'USAGE')
    THEN
        RAISE EXCEPTION 'increment_feature_usage: % may count for the user in allotment.user_id only', caller
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN count_usage(user_id, feature, amount, metadata);
END
$$
