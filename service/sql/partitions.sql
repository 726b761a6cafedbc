-- partitions: names of the partitions that usage_logs has, the default one among them.
SELECT child.relname::text AS name
FROM pg_inherits
JOIN pg_class child ON child.oid = inhrelid
WHERE inhparent = 'usage_logs'::regclass
