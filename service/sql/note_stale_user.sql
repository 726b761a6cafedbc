-- note_stale_user: note in this transaction that Redis must drop the user, see service.staleness.
-- $1 uuid user
INSERT INTO stale_users (user_id) VALUES ($1)
