-- count_quarantined: how many records are in quarantine, and the last id, 0 without any.
SELECT count(*) AS records, coalesce(max(id), 0) AS last FROM quarantined_records
