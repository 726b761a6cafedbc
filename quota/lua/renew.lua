-- renew: keep a token for longer, unless it is gone or another caller's by now.
-- KEYS   1 token
-- ARGV   1 the caller's token   2 how long from now, ms
-- Reply  1 it is kept, 0 it is not the caller's
if redis.pcall('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
