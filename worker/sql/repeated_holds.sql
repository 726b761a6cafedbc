-- repeated_holds: which of these keys have reserved already, however their holds ended.
-- $1 uuid[] users   $2 text[] keys
SELECT h.user_id, h.key
FROM unnest($1::uuid[], $2::text[]) AS asked(user_id, key)
JOIN holds h USING (user_id, key)
