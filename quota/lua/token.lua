-- token: say which of these users this caller may load now; one loader a user at a time.
-- KEYS   1 meta   then per user: quota hash, token
-- ARGV   1 epoch   2 the caller's token   3 how long it may take, ms
-- Reply  {1} the shard has another epoch
--        {0, per user: 0 load it, 1 it is loaded, 2 somebody else is loading it}
-- A head in the form of an older version is none; nor has a key of another type one, and a token of another type is nobody's.
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then return {1} end
local reply = {0}
for at = 2, #KEYS, 2 do
  local head = redis.pcall('HGET', KEYS[at], 'h')
  local token = redis.pcall('GET', KEYS[at + 1])
  if type(token) == 'table' then redis.call('UNLINK', KEYS[at + 1]) end
  if type(head) == 'string' and string.match(head, '^(%d+),%d+,[^,]+,.') == ARGV[1] then
    reply[#reply + 1] = 1
  elseif token == ARGV[2] or redis.call('SET', KEYS[at + 1], ARGV[2], 'NX', 'PX', ARGV[3]) then
    reply[#reply + 1] = 0
  else
    reply[#reply + 1] = 2
  end
end
return reply
