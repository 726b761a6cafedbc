-- legacy_bases: the tables that a relation has its rows from: itself, what a view is made of, and every partition.
-- A table that another one of the view refers to by a foreign key, and that has no count, is looked up (the names of
-- users, say): none of these.
-- beneath: those, and the views between.  A function of the session: nothing of it stays.
CREATE OR REPLACE FUNCTION pg_temp.legacy_bases(relation oid, OUT beneath oid[], OUT tables oid[])
LANGUAGE sql AS $legacy_bases$
WITH RECURSIVE under AS (
    SELECT relation AS oid
    UNION
    SELECT x.oid FROM under u CROSS JOIN LATERAL (
        SELECT d.refobjid AS oid FROM pg_rewrite r
        JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid AND d.refclassid = 'pg_class'::regclass
        WHERE r.ev_class = u.oid
        UNION ALL
        SELECT i.inhrelid FROM pg_inherits i WHERE i.inhparent = u.oid
    ) x
)
SELECT array_agg(u.oid), array_agg(u.oid) FILTER (WHERE c.relkind IN ('r', 'p', 'f') AND (w.counted IS NOT NULL OR NOT EXISTS (
    SELECT FROM pg_constraint k
    WHERE k.contype = 'f' AND k.confrelid = u.oid AND k.conrelid <> u.oid AND k.conrelid IN (SELECT o.oid FROM under o)
)))
FROM under u JOIN pg_class c ON c.oid = u.oid CROSS JOIN LATERAL pg_temp.legacy_columns(u.oid) w
$legacy_bases$
