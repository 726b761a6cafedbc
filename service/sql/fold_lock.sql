-- fold_lock: the fence of the fold, and partitions as they are, until the transaction ends.
-- Both before its snapshot: what the one before has folded, and what has moved, is in it then. In the order of
-- make_partition, which locks usage_logs first.
LOCK TABLE usage_logs IN ACCESS SHARE MODE;
LOCK TABLE rollup_state IN EXCLUSIVE MODE NOWAIT
