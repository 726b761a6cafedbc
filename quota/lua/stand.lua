-- stand: what Redis has of a shard, whatever state its keys are in.
-- KEYS   as of admit.lua, without users: 1 usage log  2 meta  3 rules  4-6 key marks  7 tallies  8 due
-- ARGV   1 id of the entry that was applied last
-- Reply  {1 if every key is of its type or missing, 1 if that entry is in the log, the last id that the log gave,
--         then of meta: epoch, position, shards, kept_from, gap}; "" for each of these that can not be read
local types, typed = {'stream', 'hash', 'hash', 'hash', 'hash', 'hash', 'hash', 'zset'}, 1
for n, wanted in ipairs(types) do
  local found = redis.call('TYPE', KEYS[n]).ok
  if found ~= wanted and found ~= 'none' then typed = 0 end
end
local last_id = ''
local info = redis.pcall('XINFO', 'STREAM', KEYS[1])
if not info.err then
  for at = 1, #info, 2 do
    if info[at] == 'last-generated-id' then last_id = info[at + 1] end
  end
end
local entry = redis.pcall('XRANGE', KEYS[1], ARGV[1], ARGV[1], 'COUNT', '1')
local reply = {typed, entry.err and 0 or #entry, last_id}
local about = redis.pcall('HMGET', KEYS[2], 'epoch', 'position', 'shards', 'kept_from', 'gap')
for n = 1, 5 do reply[3 + n] = not about.err and about[n] or '' end
return reply
