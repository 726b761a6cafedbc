-- quarantined: records that could not be applied, as they came.
-- $1 bigint[] ids
SELECT id, source, place, raw, reason, created_at, retries FROM quarantined_records
WHERE id = ANY ($1::bigint[])
ORDER BY id
