-- refuse_quarantined: a record was tried again and refused; why, this time.
-- $1 bigint: id   $2 text: reason
UPDATE quarantined_records SET retries = retries + 1, reason = $2 WHERE id = $1
