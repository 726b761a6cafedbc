-- read_anew: forget what was read of legacy relations, so that everything is read from the first row on.
CREATE OR REPLACE FUNCTION allotment_legacy.read_anew() RETURNS void LANGUAGE sql AS $read_anew$
TRUNCATE legacy_feature_usage;
DELETE FROM quarantined_records q WHERE q.source LIKE 'legacy:%';
UPDATE allotment_legacy.sources s
SET filenode = pg_relation_filenode(s.relation), next_block = 0, done = false, rows = 0, brought = 0, rejected = 0, units = 0;
$read_anew$
