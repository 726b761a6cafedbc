-- verify_lock_logs: keep the partitions of the usage log as they are until the transaction ends.
-- Before its snapshot is taken: rows that move to a partition of their own later are not in that one for it.
LOCK TABLE usage_logs IN ACCESS SHARE MODE
