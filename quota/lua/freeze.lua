-- freeze: take a user out of Redis and keep everybody from loading it, so that it can be changed in PostgreSQL.
-- KEYS   1 quota hash   2 profile   3 token
-- ARGV   1 the caller's token, which begins with "still:"   2 how long it may take, ms
-- Reply  1 the user stands still, 0 somebody else has it stand still: ask again
-- A load that is under way loses its token, so it can not put the user back. What was admitted is in the log.
local token = redis.pcall('GET', KEYS[3])
if type(token) == 'string' and token ~= ARGV[1] and string.sub(token, 1, 6) == 'still:' then return 0 end
redis.call('SET', KEYS[3], ARGV[1], 'PX', ARGV[2])
redis.call('UNLINK', KEYS[1], KEYS[2])
return 1
