-- delete_quarantined: a record is where it belongs now.
-- $1 bigint: id
DELETE FROM quarantined_records WHERE id = $1
