-- take_back_use: take refunded units out of what a user ever used of a feature.
-- $1 uuid user   $2 text feature   $3 bigint units
UPDATE feature_usage SET usage_count = greatest(0, usage_count - $3) WHERE user_id = $1 AND feature_name = $2
