-- trim: cut from the log of a shard what lies before an entry, and write down from where on it is kept.
-- KEYS   1 usage log   2 meta
-- ARGV   1 id of the oldest entry to keep; some before it may stay, as Redis frees whole nodes
-- Reply  how many were cut
-- State  meta: kept_from. A stored position before it has lost what lay in between.
if not redis.call('HGET', KEYS[2], 'epoch') then return 0 end
local cut = redis.call('XTRIM', KEYS[1], 'MINID', '~', ARGV[1])
if cut > 0 then
  local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', '1')[1]
  if first then redis.call('HSET', KEYS[2], 'kept_from', first[1]) end
end
return cut
