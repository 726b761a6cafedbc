-- roll: put a user into the windows and credits of a new instant, if nothing moved since they were read.
-- KEYS   1 quota hash   2 profile
-- ARGV   1 head as read   2 credits as read   then as they shall be: 3 head   4 credits   5 windows   6 profile
--        7 how long the user stays loaded, ms
-- Reply  1 done, 0 somebody else moved first: read again
local stored = redis.call('HMGET', KEYS[1], 'h', 'c')
if stored[1] ~= ARGV[1] or stored[2] ~= ARGV[2] then return 0 end
redis.call('SET', KEYS[2], ARGV[6], 'PX', ARGV[7])
redis.call('HSET', KEYS[1], 'h', ARGV[3], 'c', ARGV[4], 'w', ARGV[5])
redis.call('PEXPIRE', KEYS[1], ARGV[7])
return 1
