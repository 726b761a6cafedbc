-- applied_lines: which of these lines of the log are the very ones that were applied, not repeats of them.
-- $1 uuid[] users   $2 uuid[] ids of usages   $3 text[] keys   $4 timestamptz[] created   $5 timestamptz[] admitted
-- A repeat has the key, but not the instant. One look-up by key a line, as in repeated_ids; a hold that was not
-- committed has no usage.
SELECT asked.place
FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::timestamptz[], $5::timestamptz[]) WITH ORDINALITY
     AS asked(user_id, id, key, created_at, admitted_at, place)
CROSS JOIN LATERAL (
    SELECT FROM usage_logs l
    WHERE l.id = asked.id AND l.user_id = asked.user_id AND l.created_at = asked.created_at
      AND coalesce(l.arrived_at, l.created_at) = asked.admitted_at
    OFFSET 0
) AS logged
UNION
SELECT asked.place
FROM unnest($1::uuid[], $3::text[], $5::timestamptz[]) WITH ORDINALITY AS asked(user_id, key, admitted_at, place)
JOIN holds h ON h.user_id = asked.user_id AND h.key = asked.key AND h.reserved_at = asked.admitted_at
