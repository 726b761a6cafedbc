-- quarantine: keep what could not be applied, once.
-- $1 text source   $2 text[] places   $3 bytea[] raw   $4 text[] reasons
INSERT INTO quarantined_records (source, place, raw, reason)
SELECT $1, q.place, q.raw, q.reason
FROM unnest($2::text[], $3::bytea[], $4::text[]) AS q(place, raw, reason)
ORDER BY q.place
ON CONFLICT (source, place) DO NOTHING
