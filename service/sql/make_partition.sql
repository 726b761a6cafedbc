-- make_partition: give a month of usage_logs a partition of its own, and the rows of that month
-- that the default partition took meanwhile.
-- {partition} its name   {start} {end} the first instants of the month and of the next one
-- Written into the text, because DDL takes no parameters: they come from a clock, never a caller.
--
-- The whole table is locked, and first. A weaker lock would let a writer choose the default
-- partition, wait there, and be refused after the attachment, because its row has a month now; and
-- whoever has locked a partition has locked the table before, so that nobody can deadlock with us.
--
-- Whoever may read the table does so by its policies; by its own name nobody but the owner reads the partition.
CREATE TABLE {partition} (LIKE usage_logs INCLUDING ALL);
ALTER TABLE {partition} ENABLE ROW LEVEL SECURITY;
LOCK TABLE ONLY usage_logs IN ACCESS EXCLUSIVE MODE;
LOCK TABLE usage_logs_default IN ACCESS EXCLUSIVE MODE;
-- What is not folded yet is known by its xmin, which a move changes: such runs name their rows instead.
WITH runs AS MATERIALIZED (
    SELECT r.*, r.xmin AS run FROM usage_runs r
), moving AS (
    SELECT DISTINCT r.id FROM runs r
    JOIN usage_logs_default d ON d.xmin = r.run AND d.created_at BETWEEN r.first_at AND r.last_at
    WHERE d.created_at >= '{start}' AND d.created_at < '{end}'
), named AS (
    SELECT r.id, array_agg(l.user_id) AS users, array_agg(l.id) AS ids, array_agg(l.created_at) AS instants
    FROM runs r JOIN moving USING (id)
    CROSS JOIN LATERAL (
        SELECT l.user_id, l.id, l.created_at FROM usage_logs l
        WHERE l.created_at BETWEEN r.first_at AND r.last_at AND l.xmin = r.run
        OFFSET 0
    ) l
    GROUP BY r.id
), forgotten AS (
    DELETE FROM usage_runs u USING named WHERE u.id = named.id
)
INSERT INTO usage_runs (noted_at, records, users, ids, instants)
SELECT r.noted_at, r.records, r.users || n.users, r.ids || n.ids, r.instants || n.instants
FROM runs r JOIN named n USING (id)
ORDER BY r.id;
WITH moved AS (
    DELETE FROM usage_logs_default
    WHERE created_at >= '{start}' AND created_at < '{end}'
    RETURNING *
)
INSERT INTO {partition} SELECT * FROM moved;
ALTER TABLE usage_logs ATTACH PARTITION {partition} FOR VALUES FROM ('{start}') TO ('{end}');
