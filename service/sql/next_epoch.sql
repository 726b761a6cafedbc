-- next_epoch: a new epoch of a shard; it only grows.
-- $1 int: shard
UPDATE usage_shards SET epoch = epoch + 1, updated_at = now() WHERE shard = $1 RETURNING epoch
