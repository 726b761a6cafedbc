-- read: everything that Redis has of one user, as of one instant.
-- KEYS   1 meta   2 quota hash   3 profile
-- ARGV   1 now_ms (0 = this server's clock)
-- A key of another type is as if it were not there: whoever loads the user replaces it.
-- Reply  {now_ms, epoch or "", profile or "", "#rules", version of the rules or "", field, value, field, value, ...} of the quota hash
local now = tonumber(ARGV[1])
if now == 0 then
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end
local about = redis.call('HMGET', KEYS[1], 'epoch', 'rules')
local profile = redis.pcall('GET', KEYS[3])
local reply = {now, about[1] or '', type(profile) == 'string' and profile or '', '#rules', about[2] or ''}
for _, text in ipairs(redis.pcall('HGETALL', KEYS[2])) do reply[#reply + 1] = text end
return reply
