-- token: say which of these users this caller may load now; one loader a user at a time.
-- KEYS   1 meta   then per user: quota hash, token
-- ARGV   1 epoch   2 the caller's token   3 how long it may take, ms
-- Reply  {1} the shard has another epoch
--        {0, per user: 0 load it, 1 it is loaded, 2 somebody else is loading it}
-- A head in the form of an older version is none.
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then return {1} end
local reply = {0}
for at = 2, #KEYS, 2 do
  local head = redis.call('HGET', KEYS[at], 'h')
  if head and string.match(head, '^(%d+),%d+,[^,]+,.') == ARGV[1] then
    reply[#reply + 1] = 1
  elseif redis.call('SET', KEYS[at + 1], ARGV[2], 'NX', 'PX', ARGV[3]) or redis.call('GET', KEYS[at + 1]) == ARGV[2] then
    reply[#reply + 1] = 0
  else
    reply[#reply + 1] = 2
  end
end
return reply
