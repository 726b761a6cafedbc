-- protect_tables: policies for every table with rows of users; of the rest, admins may read what there is.
-- A partition is no way around the policies of its table: nobody is granted it, and it has no policy that lets
-- anybody see a row.  Rows of rules are for all to read.  By name: other applications have tables in the schema too.
DO $$
DECLARE
    found text;
BEGIN
    PERFORM protect_user_rows('users', 'id');
    FOREACH found IN ARRAY ARRAY[
        'usage_logs', 'usage_keys', 'usage_refunds', 'feature_usage', 'usage_counters', 'usage_windows', 'holds',
        'credit_grants', 'credit_entries', 'subscriptions', 'subscription_events', 'stale_users', 'stale_rollups',
        'usage_daily', 'usage_last_days', 'usage_last_30_days', 'user_active_days', 'user_usage', 'user_usage_features',
        'user_lifetime_stats'
    ] LOOP
        PERFORM protect_user_rows(found::regclass);
    END LOOP;
    FOR found IN SELECT inhrelid::regclass FROM pg_inherits WHERE inhparent = 'usage_logs'::regclass LOOP
        EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', found);
    END LOOP;
    FOREACH found IN ARRAY ARRAY[
        'tiers', 'tier_limits', 'credit_prices', 'outage_policies', 'usage_shards', 'quarantined_records', 'usage_runs',
        'rollup_state', 'usage_daily_actions', 'usage_users_by_last_day'
    ] LOOP
        EXECUTE format('GRANT SELECT ON %s TO allotment_admin', found::regclass);
    END LOOP;
END
$$
