-- make_shards: one row a shard, made once; answers how many there are.
-- $1 int: number of shards
WITH made AS (
    INSERT INTO usage_shards (shard)
    SELECT generate_series(0, $1::int - 1)
    WHERE NOT EXISTS (SELECT FROM usage_shards)
    ON CONFLICT DO NOTHING
    RETURNING shard
)
SELECT (SELECT count(*) FROM made) + (SELECT count(*) FROM usage_shards)
