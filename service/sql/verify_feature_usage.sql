-- verify_feature_usage: how often users used each feature, as it is counted.
-- $1 uuid[] users
SELECT user_id, feature_name AS feature, usage_count, last_used FROM feature_usage WHERE user_id = ANY ($1::uuid[])
