-- verify_legacy: what users had used of each feature when their legacy rows were brought over.
-- $1 uuid[] users
SELECT user_id, feature, units, last_used FROM legacy_feature_usage WHERE user_id = ANY ($1::uuid[])
