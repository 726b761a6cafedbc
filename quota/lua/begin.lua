-- begin: put a shard into a new epoch; whatever was cached under an older one has to be loaded again.
-- KEYS   1 usage log   2 meta   3 tallies
-- ARGV   1 epoch   2 stored log position "ms-seq"   3 number of shards   4 how long a key is remembered, ms
--        5 lines applied so far, from which the tally of lines goes on   6 how long after a period's end it still counts, ms
-- Reply  1 done, 0 a newer epoch is in place
-- State  meta gets the position too: until it moves, no entry of the log can tell that Redis was not set back
-- A log that starts anew goes on behind the stored position: an entry below it would be taken for applied.
local current = tonumber(redis.call('HGET', KEYS[2], 'epoch') or '0')
if current > tonumber(ARGV[1]) then return 0 end
local last = redis.pcall('XINFO', 'STREAM', KEYS[1])
local last_id = '0-0'
if not last.err then
  for at = 1, #last, 2 do
    if last[at] == 'last-generated-id' then last_id = last[at + 1] end
  end
end
local function numbers(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(seq)
end
local last_ms, last_seq = numbers(last_id)
local position_ms, position_seq = numbers(ARGV[2])
if last_ms < position_ms or (last_ms == position_ms and last_seq < position_seq) then
  local id = redis.call('XADD', KEYS[1], ARGV[2], 'v', '0')
  redis.call('XDEL', KEYS[1], id)
end
redis.call('HSET', KEYS[2], 'epoch', ARGV[1], 'position', ARGV[2], 'shards', ARGV[3], 'dedupe_ms', ARGV[4],
  'late_ms', ARGV[6])
redis.call('HSET', KEYS[3], 'lines', ARGV[5])
return 1
