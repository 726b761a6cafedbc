-- logged_lines: which lines of a record are logged.
-- $1 uuid user   $2 text key   $3 uuid: the key as an id, or null
SELECT line FROM usage_logs WHERE user_id = $1 AND (key = $2 OR id = $3)
