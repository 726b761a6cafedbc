-- names_of_users: what the application calls these users.
-- $1 uuid[] users
SELECT id, coalesce(external_id, id::text) AS name FROM users WHERE id = ANY ($1::uuid[])
