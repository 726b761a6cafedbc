-- feature_used: the row of feature_usage that seed 000 shows.
-- $1 uuid user   $2 text feature
SELECT usage_count, last_used, metadata FROM feature_usage WHERE user_id = $1 AND feature_name = $2
