-- lock_partitions: wait for whoever else makes partitions, until the transaction ends.
-- ('allo', 2); ('allo', 1) is the migrations' (alembic/env.py).
SELECT pg_advisory_xact_lock(1634495599, 2)
