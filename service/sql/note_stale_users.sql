-- note_stale_users: note in this transaction that Redis must drop these users, see service.staleness.
-- $1 uuid[] users
INSERT INTO stale_users (user_id) SELECT unnest($1::uuid[])
