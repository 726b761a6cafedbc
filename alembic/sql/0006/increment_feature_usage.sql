-- increment_feature_usage (seed 004): count units of a feature as used now; see count_usage.
-- Returns the units that the user ever used of it.  Several in one transaction: in the order of user and feature,
-- or PostgreSQL may have to end one of two that wait for each other, which then has counted nothing.
CREATE OR REPLACE FUNCTION increment_feature_usage(
    user_id uuid, feature text, amount bigint DEFAULT 1, metadata jsonb DEFAULT NULL
) RETURNS bigint
LANGUAGE plpgsql AS $$
BEGIN
    RETURN count_usage(user_id, feature, amount, metadata);
END
$$
