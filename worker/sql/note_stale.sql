-- note_stale: users whose standing in Redis has to be dropped, see service.staleness.
-- $1 uuid[] users
INSERT INTO stale_users (user_id) SELECT unnest($1::uuid[]) ORDER BY 1
