-- grant_rest: the schema, the rules, the views and the functions; views run with the rights of who asks.
DO $$
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA %I TO allotment_user, allotment_admin', current_schema());
    GRANT SELECT ON tiers, tier_limits, credit_prices, outage_policies TO allotment_user;
    GRANT SELECT ON feature_events, usage_alerts_view TO allotment_user, allotment_admin;
    REVOKE ALL ON FUNCTION count_usage, increment_feature_usage, protect_user_rows FROM PUBLIC;
    GRANT EXECUTE ON FUNCTION increment_feature_usage TO allotment_user, allotment_admin;
END
$$
