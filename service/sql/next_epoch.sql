-- next_epoch: a new epoch of a shard; it only grows, also beyond the one that Redis has.
-- $1 int: shard   $2 bigint: the epoch that Redis has
UPDATE usage_shards SET epoch = greatest(epoch, $2) + 1, updated_at = now() WHERE shard = $1 RETURNING epoch
