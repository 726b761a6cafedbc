-- find_record: how often a line is logged, and what PostgreSQL has of a hold of its key.
-- $1 uuid user   $2 text key   $3 smallint line
SELECT (SELECT count(*) FROM usage_logs WHERE user_id = $1 AND coalesce(key, id::text) = $2 AND line = $3) AS logged,
       (SELECT format('%s %s of %s, reserved %s, ended %s', status, committed_amount, amount, reserved_at, ended_at)
        FROM holds WHERE user_id = $1 AND key = $2) AS hold
