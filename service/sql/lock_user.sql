-- lock_user: lock a user's row for this transaction; the time of now, or no row when there is no such user.
-- $1 uuid user
SELECT clock_timestamp() FROM users WHERE id = $1 FOR UPDATE
