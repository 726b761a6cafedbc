-- fold_note_user: have the rollups of a user made anew.
-- $1 uuid user
INSERT INTO stale_rollups (user_id) VALUES ($1)
