-- begin: put a shard into a new epoch; whatever was cached under an older one has to be loaded again.
-- KEYS   as of stand.lua
-- ARGV   1 epoch   2 stored log position "ms-seq"   3 number of shards
--        4 lines applied so far, from which the tally of lines goes on
--        5 the entry from which on the log is kept, if PostgreSQL lacks what lay before it, else ""
--        6 how long a key is remembered, ms   7 how long after a period's end it still counts, ms
-- Reply  1 done, 0 a newer epoch is in place, -1 the log has entries below the position: are they applied?
-- State  meta gets the position too: until it moves, no entry of the log can tell that Redis was not set back;
--        and the gap that was told. What is of another type than it should be can not be read, and goes.
-- A log that starts anew goes on behind the stored position: an entry below it would be taken for applied.
local types = {'stream', 'hash', 'hash', 'hash', 'hash', 'hash', 'hash', 'zset'}
for n, wanted in ipairs(types) do
  local found = redis.call('TYPE', KEYS[n]).ok
  if found ~= wanted and found ~= 'none' then redis.call('DEL', KEYS[n]) end
end
local current = redis.call('HGET', KEYS[2], 'epoch') or ''
if #current <= 15 and string.match(current, '^%d+$') and tonumber(current) > tonumber(ARGV[1]) then return 0 end
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
  if redis.call('XLEN', KEYS[1]) > 0 then return -1 end
  local id = redis.call('XADD', KEYS[1], ARGV[2], 'v', '0')
  redis.call('XDEL', KEYS[1], id)
end
redis.call('HSET', KEYS[2], 'epoch', ARGV[1], 'position', ARGV[2], 'shards', ARGV[3], 'dedupe_ms', ARGV[6],
  'late_ms', ARGV[7])
redis.call('HSET', KEYS[7], 'lines', ARGV[4])
if ARGV[5] ~= '' then
  redis.call('HSET', KEYS[2], 'gap', ARGV[5])
  redis.pcall('HINCRBY', KEYS[7], 'gaps', 1)
end
return 1
