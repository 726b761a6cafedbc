-- roll: put a user into the windows and credits of a new instant, if nothing moved since they were read.
-- KEYS   1 quota hash   2 profile
-- ARGV   as read: 1 head   2 credits   3 windows   4 profile   then as they shall be: 5 head   6 credits   7 windows
--        8 profile   9 how long the user stays loaded, ms
-- Reply  1 done, 0 somebody else moved first: read again
local stored = redis.call('HMGET', KEYS[1], 'h', 'c', 'w')
for n = 1, 3 do
  if stored[n] ~= ARGV[n] then return 0 end
end
if redis.call('GET', KEYS[2]) ~= ARGV[4] then return 0 end
redis.call('SET', KEYS[2], ARGV[8], 'PX', ARGV[9])
redis.call('HSET', KEYS[1], 'h', ARGV[5], 'c', ARGV[6], 'w', ARGV[7])
redis.call('PEXPIRE', KEYS[1], ARGV[9])
return 1
