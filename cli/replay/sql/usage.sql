-- usage: what a user used of a feature over all time, and the micro-credits that it cost.
-- $1 uuid user   $2 text feature
SELECT coalesce((SELECT usage_count FROM feature_usage WHERE user_id = $1 AND feature_name = $2), 0) AS used,
       coalesce((SELECT sum(credits_consumed) * 1000000 FROM usage_logs WHERE user_id = $1 AND action = $2),
                0)::bigint AS micro
