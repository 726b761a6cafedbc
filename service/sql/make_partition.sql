-- make_partition: give a month of usage_logs a partition of its own, and the rows of that month
-- that the default partition took meanwhile.
-- {partition} its name   {start} {end} the first instants of the month and of the next one
-- Written into the text, because DDL takes no parameters: they must come from a clock, not a caller.
--
-- Attaching a table lets others read and write usage_logs; CREATE TABLE … PARTITION OF does not.
-- The parent is locked first, as ANALYZE does it, and the default partition before rows are moved:
-- a row that came after them would keep the partition from being attached.
CREATE TABLE {partition} (LIKE usage_logs INCLUDING ALL);
LOCK TABLE ONLY usage_logs IN SHARE UPDATE EXCLUSIVE MODE;
LOCK TABLE usage_logs_default IN ACCESS EXCLUSIVE MODE;
WITH moved AS (
    DELETE FROM usage_logs_default
    WHERE created_at >= '{start}' AND created_at < '{end}'
    RETURNING *
)
INSERT INTO {partition} SELECT * FROM moved;
ALTER TABLE usage_logs ATTACH PARTITION {partition} FOR VALUES FROM ('{start}') TO ('{end}');
