-- tally: read the tallies of a shard, without what is no count, and set right how many lines were logged.
-- KEYS   1 usage log   2 tallies
-- ARGV   1 stored log position   2 lines applied up to there, "" = it is not known now
-- Reply  {id of the oldest entry behind the position or "", field, count, field, count, ...}
-- Lines logged are those applied and those that wait. The latter are counted where they are few: an epoch that began with
-- a log that was not applied, or a PostgreSQL that was set back, has left the tally off by what it does not know of.
local FEW = 20
if redis.call('TYPE', KEYS[2]).ok ~= 'hash' then redis.call('DEL', KEYS[2]) end
local counts = redis.call('HGETALL', KEYS[2])
for at = 1, #counts, 2 do
  local count = counts[at + 1]
  if #count > 15 or not string.match(count, '^%d+$') then redis.call('HDEL', KEYS[2], counts[at]) end
end
local waiting = redis.call('XRANGE', KEYS[1], '(' .. ARGV[1], '+', 'COUNT', FEW)
if ARGV[2] ~= '' and #waiting < FEW then
  local lines = tonumber(ARGV[2])
  for _, entry in ipairs(waiting) do
    for at = 1, #entry[2], 2 do
      if entry[2][at] == 'c' then lines = lines + select(2, string.gsub(entry[2][at + 1], ',', '')) end
    end
  end
  local text = string.format('%d', lines)
  if redis.call('HGET', KEYS[2], 'lines') ~= text then redis.call('HSET', KEYS[2], 'lines', text) end
end
local reply = redis.call('HGETALL', KEYS[2])
table.insert(reply, 1, waiting[1] and waiting[1][1] or '')
return reply
