-- verify_set_windows: units of features in windows that were opened by use.
-- $1 uuid[] users   $2 text[] features   $3 int[] seconds   $4 bigint[] units
UPDATE usage_windows w SET used = u.used
FROM (SELECT * FROM unnest($1::uuid[], $2::text[], $3::int[], $4::bigint[]) AS u(user_id, feature, seconds, used)
      ORDER BY 1, 2, 3) u
WHERE w.user_id = u.user_id AND w.feature = u.feature AND w.seconds = u.seconds
