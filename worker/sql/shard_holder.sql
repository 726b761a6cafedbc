-- shard_holder: the session that has a shard's row, while its server process waits for its client; else no row.
-- $1 int: shard
-- Two equal answers tell that nothing came from that client in between: sent counts the bytes of a COPY.
-- What holds a row lock is the transaction in the row's xmax.
SELECT a.pid, a.query_start, coalesce(c.bytes_processed, 0) AS sent
FROM usage_shards AS s
JOIN pg_stat_activity AS a ON a.backend_xid = s.xmax
LEFT JOIN pg_stat_progress_copy AS c ON c.pid = a.pid
WHERE s.shard = $1 AND a.wait_event_type = 'Client'
