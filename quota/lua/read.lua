-- read: everything that Redis has of one user, as of one instant.
-- KEYS   1 meta   2 quota hash   3 profile
-- ARGV   1 now_ms (0 = this server's clock)
-- Reply  {now_ms, epoch or "", profile or "", "#rules", version of the rules or "", field, value, field, value, ...} of the quota hash
local now = tonumber(ARGV[1])
if now == 0 then
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end
local about = redis.call('HMGET', KEYS[1], 'epoch', 'rules')
local reply = {now, about[1] or '', redis.call('GET', KEYS[3]) or '', '#rules', about[2] or ''}
for _, text in ipairs(redis.call('HGETALL', KEYS[2])) do reply[#reply + 1] = text end
return reply
