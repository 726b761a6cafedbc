-- stand: what Redis has of a shard, whatever state its keys are in.
-- KEYS   as of admit.lua, without users: 1 usage log  2 meta  3 rules  4-6 key marks  7 tallies  8 due
-- ARGV   1 id of the entry that was applied last
-- Reply  {1 if every key is of its type or missing, 1 if that entry is in the log, the last id that the log gave or "",
--         then of meta, "" where it is missing: epoch, position, shards, kept_from, gap}; all 0 and "" behind a 0 in the first place
local types = {'stream', 'hash', 'hash', 'hash', 'hash', 'hash', 'hash', 'zset'}
for n, wanted in ipairs(types) do
  local found = redis.call('TYPE', KEYS[n]).ok
  if found ~= wanted and found ~= 'none' then return {0, 0, '', '', '', '', '', ''} end
end
local last_id = ''
local info = redis.pcall('XINFO', 'STREAM', KEYS[1])
if not info.err then
  for at = 1, #info, 2 do
    if info[at] == 'last-generated-id' then last_id = info[at + 1] end
  end
end
local reply = {1, #redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1], 'COUNT', '1'), last_id}
for _, text in ipairs(redis.call('HMGET', KEYS[2], 'epoch', 'position', 'shards', 'kept_from', 'gap')) do
  reply[#reply + 1] = text or ''
end
return reply
