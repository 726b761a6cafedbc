-- list_quarantined: what could not be applied, oldest first, without the bytes.
-- $1 bigint: behind this id   $2 int: at most so many
SELECT id, source, place, reason, created_at, retries, length(raw) AS bytes
FROM quarantined_records
WHERE id > $1
ORDER BY id
LIMIT $2
