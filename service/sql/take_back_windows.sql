-- take_back_windows: count units of a feature no more in windows of so many seconds, if they were opened last.
-- $1 uuid user   $2 text feature   $3 bigint units   $4 int[] seconds   $5 timestamptz[] ends of those windows
-- $6 timestamptz: or an instant, for every window that it lies in; null for none
UPDATE usage_windows w
SET used = greatest(0, w.used - $3)
WHERE w.user_id = $1 AND w.feature = $2
  AND ((w.seconds, w.ends_at) IN (SELECT * FROM unnest($4::int[], $5::timestamptz[]))
       OR $6 < w.ends_at AND $6 >= w.ends_at - make_interval(secs => w.seconds))
