-- legacy_found: relations of the names that legacy feature usage has, where tables of ours are made, and their columns.
-- rows: as estimated; -1 where nobody counted
SELECT c.relname AS name, c.relkind::text AS kind, c.reltuples::bigint AS rows,
       ARRAY(SELECT a.attname::text FROM pg_attribute a
             WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum) AS columns
FROM pg_class c
WHERE c.relnamespace = to_regnamespace(quote_ident(current_schema()))
  AND c.relname IN ('feature_usage', 'user_feature_usage') AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
ORDER BY c.relname
