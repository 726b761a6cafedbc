-- leave_mark: write a little to the WAL, so that this transaction waits for a synchronous standby if there is one.
SELECT pg_logical_emit_message(true, 'allotment', 'trim')
