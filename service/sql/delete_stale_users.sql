-- delete_stale_users: take back notes that were acted on; a note made since then has another number.
-- $1 uuid[] users   $2 bigint[] the number of each note
DELETE FROM stale_users s
USING unnest($1::uuid[], $2::bigint[]) AS done(user_id, change)
WHERE s.user_id = done.user_id AND s.change = done.change
