-- advance_shard: everything up to this entry is applied.
-- $1 int: shard   $2 text: entry id   $3 bigint: how many lines that was
UPDATE usage_shards SET last_entry_id = $2, lines_applied = lines_applied + $3, updated_at = now() WHERE shard = $1
