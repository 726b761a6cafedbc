-- schema_objects: all that migrations make in the schema, by kind and name; what belongs to a table has its name before.
-- Columns are compared with the models.  What has been switched off (row security, a trigger, the caller's rights of a view) is not there.
WITH ours AS (
    SELECT c.* FROM pg_class c
    WHERE c.relnamespace = to_regnamespace(quote_ident(current_schema()))
      AND NOT c.relispartition AND c.relname <> 'alembic_version'
)
SELECT 'table' AS kind, c.relname::text AS name FROM ours c WHERE c.relkind IN ('r', 'p')
UNION ALL
SELECT 'view', c.relname FROM ours c WHERE c.relkind = 'v'
UNION ALL
SELECT 'security_invoker', c.relname FROM ours c WHERE c.relkind = 'v' AND 'security_invoker=true' = ANY (c.reloptions)
UNION ALL
SELECT 'row security', c.relname FROM ours c WHERE c.relrowsecurity
UNION ALL
SELECT 'policy', c.relname || '.' || p.polname FROM ours c JOIN pg_policy p ON p.polrelid = c.oid
UNION ALL
SELECT 'default', c.relname || '.' || a.attname FROM ours c JOIN pg_attribute a ON a.attrelid = c.oid
WHERE c.relkind IN ('r', 'p') AND (a.atthasdef OR a.attidentity <> '') AND NOT a.attisdropped
UNION ALL
SELECT CASE k.contype WHEN 'p' THEN 'primary key' WHEN 'f' THEN 'foreign key' WHEN 'u' THEN 'unique key' ELSE 'check' END,
       c.relname || '.' || k.conname
FROM ours c JOIN pg_constraint k ON k.conrelid = c.oid
WHERE k.contype IN ('p', 'f', 'u', 'c')
UNION ALL
SELECT 'index', c.relname || '.' || i.relname FROM ours c
JOIN pg_index x ON x.indrelid = c.oid JOIN pg_class i ON i.oid = x.indexrelid
WHERE x.indisvalid
UNION ALL
SELECT 'trigger', c.relname || '.' || t.tgname FROM ours c JOIN pg_trigger t ON t.tgrelid = c.oid
WHERE NOT t.tgisinternal AND t.tgenabled <> 'D'
UNION ALL
SELECT 'function', p.proname || '(' || oidvectortypes(p.proargtypes) || ')' FROM pg_proc p
WHERE p.pronamespace = to_regnamespace(quote_ident(current_schema()))
UNION ALL
SELECT 'role', r.rolname FROM pg_roles r WHERE r.rolname IN ('allotment_user', 'allotment_admin')
ORDER BY 1, 2
