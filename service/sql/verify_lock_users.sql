-- verify_lock_users: keep users as they are until the transaction ends.
-- $1 uuid[] users
SELECT id FROM users WHERE id = ANY ($1::uuid[]) ORDER BY id FOR UPDATE
