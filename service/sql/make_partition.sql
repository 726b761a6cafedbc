-- make_partition: give a month of usage_logs a partition of its own, and the rows of that month
-- that the default partition took meanwhile.
-- {partition} its name   {start} {end} the first instants of the month and of the next one
-- Written into the text, because DDL takes no parameters: they come from a clock, never a caller.
--
-- The whole table is locked, and first. A weaker lock would let a writer choose the default
-- partition, wait there, and be refused after the attachment, because its row has a month now; and
-- whoever has locked a partition has locked the table before, so that nobody can deadlock with us.
CREATE TABLE {partition} (LIKE usage_logs INCLUDING ALL);
LOCK TABLE ONLY usage_logs IN ACCESS EXCLUSIVE MODE;
LOCK TABLE usage_logs_default IN ACCESS EXCLUSIVE MODE;
WITH moved AS (
    DELETE FROM usage_logs_default
    WHERE created_at >= '{start}' AND created_at < '{end}'
    RETURNING *
)
INSERT INTO {partition} SELECT * FROM moved;
ALTER TABLE usage_logs ATTACH PARTITION {partition} FOR VALUES FROM ('{start}') TO ('{end}');
