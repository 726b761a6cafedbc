-- install: put loaded users in place, unless the shard or the user changed while they were read.
-- KEYS   1 meta   2 users by when their next hold expires   then per user: quota hash, profile, token
-- ARGV   1 epoch   2 the caller's token   3 how long a user stays loaded, ms
--        then per user: user as the log names it, when its next hold expires (0 = none), profile,
--        number of texts of its hash, and those: field, value, ...
-- Reply  how many were installed; -1 the shard has another epoch
-- A user is refused when its token is gone (somebody changed it meanwhile, or the load took too long).
-- What is of another type than ours is replaced.
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then return -1 end
local function put(command, key, ...)
  if type(redis.pcall(command, key, ...)) ~= 'table' then return end
  redis.call('UNLINK', key)
  redis.call(command, key, ...)
end
local installed, at = 0, 4
for user = 3, #KEYS, 3 do
  local texts = tonumber(ARGV[at + 3])
  if redis.pcall('GET', KEYS[user + 2]) == ARGV[2] then
    redis.call('SET', KEYS[user + 1], ARGV[at + 2], 'PX', ARGV[3])
    redis.call('DEL', KEYS[user])
    for from = at + 4, at + 3 + texts, 1000 do
      redis.call('HSET', KEYS[user], unpack(ARGV, from, math.min(from + 999, at + 3 + texts)))
    end
    if ARGV[at + 1] == '0' then put('ZREM', KEYS[2], ARGV[at]) else put('ZADD', KEYS[2], ARGV[at + 1], ARGV[at]) end
    redis.call('PEXPIRE', KEYS[user], ARGV[3])
    redis.call('DEL', KEYS[user + 2])
    installed = installed + 1
  end
  at = at + 4 + texts
end
return installed
