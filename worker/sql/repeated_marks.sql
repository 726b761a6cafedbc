-- repeated_marks: which of these keys were applied already, however long ago.
-- $1 uuid[] users   $2 uuid[] marks
SELECT k.user_id, k.mark
FROM unnest($1::uuid[], $2::uuid[]) AS asked(user_id, mark)
JOIN usage_keys k USING (user_id, mark)
