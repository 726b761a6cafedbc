-- forget_ended_holds: take away holds that ended with nothing used, and their keys, so that they can be made anew.
-- $1 uuid[] users   $2 text[] keys of holds   $3 uuid[] marks of these keys
WITH ended AS (
    DELETE FROM holds h
    USING unnest($1::uuid[], $2::text[]) AS asked(user_id, key)
    WHERE h.user_id = asked.user_id AND h.key = asked.key AND h.status IN ('released', 'expired')
)
DELETE FROM usage_keys k
USING unnest($1::uuid[], $3::uuid[]) AS asked(user_id, mark)
WHERE k.user_id = asked.user_id AND k.mark = asked.mark
