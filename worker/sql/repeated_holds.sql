-- repeated_holds: which of these keys have reserved already, and how their holds ended, if they did.
-- $1 uuid[] users   $2 text[] keys
SELECT h.user_id, h.key, h.status
FROM unnest($1::uuid[], $2::text[]) AS asked(user_id, key)
JOIN holds h USING (user_id, key)
