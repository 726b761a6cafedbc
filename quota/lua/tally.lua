-- tally: read the tallies of a shard, without what is no count, and set right how many lines were logged.
-- KEYS   1 usage log   2 tallies
-- ARGV   1 stored log position   2 lines applied up to there, "" = it is not known now
-- Reply  {id of the oldest entry behind the position or "", field, count, field, count, ...}
-- Lines logged are those applied and those that wait. The latter are counted where they are few: an epoch that began with
-- a log that was not applied, or a PostgreSQL that was set back, has left the tally off by what it does not know of.
local FEW, BYTES_MAX = 20, 262144
if redis.call('TYPE', KEYS[2]).ok ~= 'hash' then redis.call('DEL', KEYS[2]) end
local counts = redis.call('HGETALL', KEYS[2])
for at = 1, #counts, 2 do
  local count = counts[at + 1]
  if #count > 15 or not string.match(count, '^%d+$') then redis.call('HDEL', KEYS[2], counts[at]) end
end
local lines, oldest, after, bytes = tonumber(ARGV[2]), '', ARGV[1], 0
for n = 1, FEW do
  local entry = redis.call('XRANGE', KEYS[1], '(' .. after, '+', 'COUNT', '1')[1]
  if not entry then
    local text = lines and string.format('%d', lines)
    -- A full Redis takes no correction; the tallies are read all the same.
    if text and redis.call('HGET', KEYS[2], 'lines') ~= text then redis.pcall('HSET', KEYS[2], 'lines', text) end
    break
  end
  if n == 1 then oldest = entry[1] end
  after = entry[1]
  for at = 1, #entry[2], 2 do
    bytes = bytes + #entry[2][at + 1]
    if entry[2][at] == 'c' then lines = lines and lines + select(2, string.gsub(entry[2][at + 1], ',', '')) end
  end
  if bytes > BYTES_MAX then break end
end
local reply = redis.call('HGETALL', KEYS[2])
table.insert(reply, 1, oldest)
return reply
