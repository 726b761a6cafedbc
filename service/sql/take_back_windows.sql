-- take_back_windows: count units of a feature no more in windows of so many seconds, if they were opened last.
-- $1 uuid user   $2 text feature   $3 bigint units   $4 int[] seconds   $5 timestamptz[] ends of those windows
-- $6 timestamptz: or an instant, for every window that it lies in; null for none
-- A window that overlapped with another has become one with it: service.opened.has_units_of.
UPDATE usage_windows w
SET used = greatest(0, w.used - $3)
WHERE w.user_id = $1 AND w.feature = $2
  AND (EXISTS (
          SELECT FROM unnest($4::int[], $5::timestamptz[]) AS o(seconds, ends_at)
          WHERE o.seconds = w.seconds AND w.ends_at > o.ends_at - make_interval(secs => o.seconds) AND w.ends_at <= o.ends_at
      )
      OR $6 < w.ends_at AND $6 >= w.ends_at - make_interval(secs => w.seconds))
