-- lines_applied: lines of the logs that are applied, of every shard.
SELECT coalesce(sum(lines_applied), 0)::bigint FROM usage_shards
