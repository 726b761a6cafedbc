-- legacy_columns: the columns of a legacy relation that are needed to read it, the first found of each; null: none is.
-- 0008/sources.sql has the same names.  A function of the session: nothing of it stays.
CREATE OR REPLACE FUNCTION pg_temp.legacy_columns(relation oid, OUT person text, OUT feature text, OUT counted text)
LANGUAGE sql AS $legacy_columns$
SELECT (array_agg(a.attname ORDER BY o.place) FILTER (WHERE o.place <= 2)) [1]::text,
       (array_agg(a.attname ORDER BY o.place) FILTER (WHERE o.place BETWEEN 3 AND 6)) [1]::text,
       (array_agg(a.attname ORDER BY o.place) FILTER (WHERE o.place >= 7)) [1]::text
FROM unnest(ARRAY['user_id', 'profile_id', 'feature_name', 'feature_type', 'feature', 'feature_id',
                  'usage_count', 'current_usage', 'used', 'count']) WITH ORDINALITY AS o (name, place)
JOIN pg_attribute a ON a.attname = o.name AND a.attrelid = relation AND a.attnum > 0 AND NOT a.attisdropped
$legacy_columns$
